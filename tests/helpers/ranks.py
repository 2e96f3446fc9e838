"""Several processes of one run, forked from one that has imported everything: quicker than torchrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from fake_gpu import FakeGpu
from runs import distance, run
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dgpo import Config, distributed, load_model
from dgpo.distributed.lockstep import Lockstep
from dgpo.distributed.sharded import rows_here
from dgpo.errors import RankLost, UserError
from dgpo.models import visits
from dgpo.models.pipeline import PipelineModel
from dgpo.models.unread import Unread
from dgpo.run.callbacks import Callback


def start(count: int, target: Callable[..., object], *arguments: Any) -> list[Any]:
    """Start so many processes as one group; one alone is none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = [
        children.context().Process(target=_rank, args=(rank, count, port, target, arguments)) for rank in range(count)
    ]
    for process in made:
        process.start()
    return made


def end(processes: Sequence[Any], seconds: float = 400) -> list[int]:
    """Wait for all of them, and return their exit codes. One that takes too long is killed."""
    last = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, last - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def together(count: int, target: Callable[..., object], *arguments: Any) -> None:
    """Let so many processes do this; all must end well."""
    assert end(start(count, target, *arguments)) == [0] * count


def _rank(rank: int, count: int, port: int, target: Callable[..., object], arguments: Sequence[Any]) -> None:
    if count > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    target(*arguments)
    distributed.shutdown()


def all_of(configs: Sequence[Config], **options: Any) -> None:
    """Run one after the other, and measure what each holds."""
    for config in configs:
        run(config, callbacks=[Held()], **options)


class Held(Callback):
    """Writes what this rank holds, in bytes, beside the run. The run called best has its best iteration first."""

    def on_iteration(self, run: Any, metrics: Any) -> None:
        if run.folder.name == "best" and run.iteration == 2:
            run.state.best_iteration = 1
        parts = {
            "network": run.model.network.parameters(),
            "sets": [t for name in run.model.weights.names for t in run.model.weights.tensors(name).values()],
            "gradients": [p.grad for p in run.model.weights.parameters() if p.grad is not None],
            "moments": [
                value for state in run.optimizer.state.values() for key, value in state.items() if key != "step"
            ],
        }
        seen: set[int] = set()
        found = {name: _bytes(tensors, seen) for name, tensors in parts.items()}
        path = Path(f"{run.folder}-held-{distributed.rank()}.json")
        path.write_text(json.dumps(found))


def _bytes(tensors: Any, seen: set[int]) -> int:
    """Of all their storages that were not counted before."""
    total = 0
    for tensor in tensors:
        own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        storage = own.untyped_storage()
        if own.numel() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def held(out: Path, rank: int) -> dict[str, int]:
    """What a rank of a run held."""
    return json.loads(Path(f"{out}-held-{rank}.json").read_text())


class Kill(Callback):
    """Kills the process of the second rank in its second iteration, after the rollout."""

    def on_rollout(self, run: Any, rollout: Any) -> None:
        if run.iteration == 1 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Visited(Callback):
    """Writes how many bytes of averages are on the device after an iteration, and the most that were at one time."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def on_iteration(self, run: Any, metrics: Any) -> None:
        path = Path(f"{run.folder}-visited-{distributed.rank()}.json")
        path.write_text(json.dumps([sum(self.gpu.alive.values()), self.gpu.peak]))


def visited(config: Config) -> None:
    """A run whose averages visit a stand-in for a GPU."""
    gpu = FakeGpu()
    visits.copied = gpu.copied
    run(config, callbacks=[Visited(gpu), Held()])


def killed(config: Config) -> None:
    run(config, callbacks=[Kill()])


def out_of_memory(config: Config) -> None:
    """The second rank runs out of memory inside a forward of the second iteration."""

    def fail() -> None:
        raise torch.OutOfMemoryError("no room on the second rank")

    _inside_a_forward(fail)
    run(config)


def killed_inside(config: Config, backward: bool, number: int) -> None:
    """The second rank is killed, or halted by SIGSTOP, inside a forward or its backward. RUN.log is what all say."""
    os.dup2(os.open(f"{config.out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)

    def blow(*_: Any) -> None:
        os.kill(os.getpid(), number)

    _inside_a_forward(None if backward else blow, blow)
    run(config)


def helping(log: Path, number: int) -> None:
    """The second rank is killed, or halted, in a call that the first one only helps with. The log is what all say."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    distributed.init("cpu", 0.05)
    own = distributed.rank()

    def gather(_: Any = None) -> None:
        torch.distributed.all_reduce(torch.ones(1))

    steps = Lockstep(("policy",), gather)

    def work() -> None:
        with torch.no_grad(), steps.call("policy"):
            os.kill(os.getpid(), number)

    try:
        distributed.together(work if own == 1 else lambda: None)
    except RankLost as lost:
        print(lost, file=sys.stderr, flush=True)
        os._exit(1)


def _inside_a_forward(fail: Callable[[], None] | None, in_backward: Callable[..., None] | None = None) -> None:
    """Let the second rank fail in its 15th forward, which is in the second iteration, or in the backward after it."""
    whole, calls = PipelineModel._forward, []

    def forward(self: Any, *arguments: Any) -> Tensor:
        calls.append(1)
        late = distributed.rank() == 1 and len(calls) >= 15
        if late and fail is not None:
            fail()
        v = whole(self, *arguments)
        if late and in_backward is not None and v.requires_grad:
            v.register_hook(in_backward)
        return v

    PipelineModel._forward = forward


def reward_fails(config: Config) -> None:
    """The reward of the second rank fails in the second iteration, between two batches of a rollout."""
    calls: list[int] = []

    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        calls.append(1)
        if distributed.rank() == 1 and len(calls) == 4:
            raise ConnectionError("the judge is away")
        return images.mean((1, 2, 3))

    run(config, reward_functions={"colour": reward})


def refused(config: Config, resume: bool, words: str) -> None:
    """The run is refused with these words on every rank."""
    with pytest.raises(UserError, match=words):
        run(config, resume=resume)


def families(folders: dict[str, Path], settings: dict[str, dict[str, Any]]) -> None:
    """A pipeline of each family answers alike, whole and sharded, with every weight set, and has the same gradients."""
    for name, folder in folders.items():
        whole, spread = (
            load_model(folder, device="cpu", finetune="full", sets=("ref",), shard=shard, **settings[name])
            for shard in ("none", "full")
        )
        with torch.no_grad():
            for model in (whole, spread):
                for tensor in model.weights.tensors("policy").values():
                    tensor.mul_(1.05)
        draw = torch.Generator().manual_seed(distributed.rank())
        x_t, t = torch.randn(2, *whole.latent_shape, generator=draw), torch.rand(2, generator=draw)
        cond = whole.encode(["a red cat", "two dogs"])
        answers = {}
        for model in (whole, spread):
            v = model.velocity(x_t, t, cond)
            v.square().mean().backward()
            with torch.no_grad():
                answers[model] = (v, model.velocity(x_t, t, cond, 2.0, "ref"), model.velocity(x_t, t, cond))
        for one, other in zip(*answers.values()):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        distributed.all_reduce_gradients([p for p in whole.weights.parameters() if p.grad is not None])
        expected = dict(whole.weights.named_parameters())
        gradients = {key: p.grad for key, p in spread.weights.named_parameters()}
        own = {key: p.grad[rows_here(len(p))] for key, p in expected.items() if p.grad is not None}
        assert {key for key, gradient in gradients.items() if gradient is not None} == own.keys(), name
        assert distance({key: gradients[key] for key in own}, own) < 1e-4, name


def halves(folders: dict[str, Path], settings: dict[str, dict[str, Any]]) -> None:
    """A shared reference in bf16 answers as the fp32 policy that it came from, bit for bit; also when that moved."""
    for name, folder in folders.items():
        given = {**settings[name], "device": "cpu", "finetune": "full", "dtype": "bf16", "shard": "full"}
        model = load_model(folder, sets=("ref", "ema"), **given)
        draw = torch.Generator().manual_seed(distributed.rank())
        x_t, t = torch.randn(2, *model.latent_shape, generator=draw), torch.rand(2, generator=draw)
        cond = model.encode(["a red cat", "two dogs"])
        policy = model.velocity(x_t, t, cond)
        policy.square().mean().backward()
        with torch.no_grad():
            ref = model.velocity(x_t, t, cond, 1.0, "ref")
            assert torch.equal(ref, policy), name
            assert torch.equal(model.velocity(x_t, t, cond, 1.0, "ema"), ref), name
            for parameter in model.weights.parameters():
                if parameter.grad is not None:
                    assert parameter.grad.dtype == torch.float32
                parameter.mul_(1.05)
            assert not torch.equal(model.velocity(x_t, t, cond), ref), name
            assert torch.equal(model.velocity(x_t, t, cond, 1.0, "ref"), ref), name
        size, half = (sum(t.nbytes for t in model.weights.tensors(which).values()) for which in ("policy", "ref"))
        assert half < 0.6 * size, name


def reading(folder: Path, out: Path) -> None:
    """Writes the most bytes of a network's files that were in memory at one time, and all that were read."""
    read, live, most = Unread._read, [], [0]

    def counted(self: Unread, key: str) -> Tensor:
        tensor = read(self, key)
        live.append((StorageWeakRef(tensor.untyped_storage()), tensor.nbytes))
        most[0] = max(most[0], sum(size for storage, size in live if not storage.expired()))
        return tensor

    Unread._read = counted
    load_model(folder, device="cpu", shard="full")
    (out / f"read-{distributed.rank()}.json").write_text(json.dumps([most[0], sum(size for _, size in live)]))
