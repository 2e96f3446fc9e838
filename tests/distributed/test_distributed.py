"""One process is a no-op; two real processes under torchrun agree (their checks are in distributed_worker.py)."""

import os
import subprocess
import sys

import distributed_worker
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo import distributed
from dgpo.errors import UserError

pytestmark = pytest.mark.slow


def test_one_process_is_a_no_op(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.init("cpu") == torch.device("cpu")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    tensor = torch.arange(6.0).reshape(3, 2)
    assert distributed.all_reduce_sum(tensor) is tensor
    assert distributed.all_gather_rows(tensor) is tensor
    assert distributed.gather_objects(["a", "b"]) == ["a", "b"]
    assert distributed.shard(7) == slice(0, 7)
    distributed.shutdown()
    assert tensor.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_gradients_are_summed_in_transfers_of_a_size(monkeypatch):
    """Of 8 floats at most, and a larger gradient alone; what has none is zero and becomes the others' sum."""
    sent = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: sent.append(len(flat)) or flat.add_(1.0))
    monkeypatch.setattr("dgpo.distributed.collectives.TRANSFER", 32)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (3,), (10,), (1,), (2, 3), (2,))]
    for number, p in enumerate(parameters):
        p.grad = None if number == 3 else torch.full_like(p, number)
    distributed.all_reduce_gradients(iter(parameters))
    assert sent == [7, 10, 7, 2]
    for number, p in enumerate(parameters):
        assert torch.equal(p.grad, torch.full_like(p, 1.0 if number == 3 else number + 1.0))


def test_world_size_without_a_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set; start with `torchrun"):
        distributed.init("cpu")


def gpus(monkeypatch, count):
    """Let PyTorch see so many GPUs; returns the list of those that were made the current one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_one_gpu_for_each_rank(monkeypatch):
    chosen = gpus(monkeypatch, 4)
    for local in ("0", "3"):
        monkeypatch.setenv("LOCAL_RANK", local)
        assert distributed.init("cuda") == torch.device("cuda", int(local))
    assert distributed.init("cuda:1") == torch.device("cuda", 1), "and is the one that plain cuda means"
    assert chosen == [0, 3, 1]
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(UserError, match="LOCAL_RANK=99 needs 100 GPUs on this machine; 4 are visible"):
        distributed.init("cuda")
    with pytest.raises(UserError, match="device='cuda:7' needs 8 GPUs on this machine; 4 are visible"):
        distributed.init("cuda:7")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="cuda:1 would be shared by 2 processes"):
        distributed.init("cuda:1")
    with pytest.raises(UserError, match="2 processes cannot share Apple's mps"):
        distributed.init("mps")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_a_gpu_cuda_is_to_blame_and_no_launcher(monkeypatch, device):
    gpus(monkeypatch, 0)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match=rf"device='{device}', and PyTorch sees no CUDA GPU here .*; take auto or cpu"):
        distributed.init(device)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 20))
def test_shards_cover_every_row_once_and_evenly(total, world_size):
    shards = [distributed.shard_of(total, rank, world_size) for rank in range(world_size)]
    assert [row for part in shards for row in range(total)[part]] == list(range(total))
    sizes = [part.stop - part.start for part in shards]
    assert max(sizes) - min(sizes) <= 1


def test_groups_of_24_on_four_ranks():
    sizes = [distributed.shard_of(7 * 24, rank, 4) for rank in range(4)]
    assert [part.stop - part.start for part in sizes] == [42, 42, 42, 42]


def test_two_processes_under_torchrun(tmp_path):
    worker = distributed_worker.__file__
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, str(worker), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(file.read_text() for file in tmp_path.iterdir()) == ["world size 2", "world size 2"]


LEAVES = """
import atexit, sys
import torch.distributed as dist
from dgpo import distributed

atexit.register(lambda: print("left" if not dist.is_initialized() else "still in it"))
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
distributed.leave_at_exit()
assert dist.is_initialized(), "until the process ends"
if sys.argv[1:]:
    raise ValueError(sys.argv[1])
"""


@pytest.mark.parametrize(("error", "said"), [([], "left"), (["another process waits"], "still in it")])
def test_the_group_is_left_at_the_end_of_a_process_that_ends_well(error, said):
    done = subprocess.run([sys.executable, "-c", LEAVES, *error], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == said, done.stderr
