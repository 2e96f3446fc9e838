"""One rank of test_distributed.py, started by torchrun. An assertion that fails here fails that test."""

import os
import sys
import tempfile
from pathlib import Path

import torch

from dgpo import distributed
from dgpo.core.seeds import generator
from dgpo.run import requests


def check_collectives(rank: int) -> None:
    assert distributed.all_reduce_sum(torch.tensor([1.0 + rank, 10.0])).tolist() == [3.0, 20.0]
    assert distributed.gather_objects([f"rank {rank}"] * (rank + 1)) == ["rank 0", "rank 1", "rank 1"]
    assert distributed.gather_objects(["late"] if rank else []) == ["late"]


def check_gather(rank: int) -> None:
    for total in (0, 1, 4, 7):
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
            whole = torch.arange(3 * total).reshape(total, 3).remainder(5).to(dtype)
            gathered = distributed.all_gather_rows(whole[distributed.shard(total)])
            assert gathered.dtype == dtype
            assert torch.equal(gathered, whole), (total, dtype, gathered)
    transposed = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    gathered = distributed.all_gather_rows(transposed)
    assert torch.equal(gathered, torch.cat([transposed, transposed]))
    assert not gathered.requires_grad
    assert distributed.all_gather_rows(torch.tensor([rank])).tolist() == [0, 1]


def check_group_sums_of_split_groups() -> None:
    """Three groups of five on two ranks: the middle group lies on both, its total is still the whole group's."""
    values = torch.randn(15, generator=generator(0, "values"), dtype=torch.float64)
    group_index = torch.arange(15) // 5
    mine = distributed.shard(15)
    partial = torch.zeros(3, dtype=torch.float64).index_add(0, group_index[mine], values[mine])
    assert torch.allclose(distributed.all_reduce_sum(partial), values.reshape(3, 5).sum(1), atol=1e-12)


def check_requests(rank: int) -> None:
    """What is asked of a run: each process has a folder of its own here, and what the main one finds counts for all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / requests.FOLDER
        folder.mkdir()
        (folder / ("save" if rank == 0 else "stop")).touch()
        assert requests.take(Path(name)) == {"save"}


def main() -> None:
    assert distributed.world_size() == 1, "nothing joins before init"
    device = distributed.init("cpu")
    assert device == torch.device("cpu")
    assert distributed.world_size() == 2
    rank = distributed.rank()
    assert rank == int(os.environ["RANK"])
    assert distributed.is_main() == (rank == 0)
    assert distributed.init("cpu") == device, "a second init joins nothing"
    check_collectives(rank)
    check_gather(rank)
    check_group_sums_of_split_groups()
    check_requests(rank)
    distributed.shutdown()
    assert distributed.world_size() == 1
    with open(os.path.join(sys.argv[1], f"rank-{rank}"), "w") as file:
        file.write("world size 2")


if __name__ == "__main__":
    main()
