"""Several processes as one. Without a launcher there is one process, and everything here is a no-op.

Images are spread over ranks by contiguous rows (`shard`), whatever the group size: a group may lie on two ranks, since
losses that couple a group take its total from `all_reduce_sum`. Collectives carry no gradient.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dgpo.errors import UserError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_SHARED = "dgpo_raised_on_every_rank"
_LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def init(device: str | torch.device = "cpu", timeout_minutes: float = 60) -> torch.device:
    """Join the process group that torchrun describes, and return this rank's own device.

    The timeout is long because ranks wait for one that evaluates or calls a slow reward.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device!r} is unknown; use auto, cpu, cuda or cuda:1") from error
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected == 1:
        return _own(device)
    missing = [name for name in _LAUNCHED if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={expected}, but {', '.join(missing)} not set; start with "
            f"`torchrun --standalone --nproc_per_node {expected} ...`, or unset WORLD_SIZE to run one process"
        )
    if device.type == "cuda" and device.index is not None:
        raise UserError(f"{device} would be shared by {expected} processes; give 'cuda', and each takes its own")
    if device.type == "mps":
        raise UserError(
            f"{expected} processes cannot share Apple's mps; start one without torchrun, or take device cpu"
        )
    device = _own(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    joined = int(all_reduce_sum(torch.ones((), dtype=torch.int64, device=device)))
    if joined != expected:
        raise UserError(f"WORLD_SIZE={expected}, but {joined} processes joined; check how the run is launched")
    return device


def _own(device: torch.device) -> torch.device:
    """The device of this rank, made the current one: `cuda` becomes `cuda:LOCAL_RANK`."""
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(
            f"device={str(device)!r}, and PyTorch sees no CUDA GPU here ({_why_no_gpu()}); take auto or cpu"
        )
    wanted = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if wanted >= count:
        asked = f"LOCAL_RANK={wanted}" if device.index is None else f"device={str(device)!r}"
        raise UserError(f"{asked} needs {wanted + 1} GPUs on this machine; {count} are visible")
    torch.cuda.set_device(wanted)  # so that "cuda" alone, as rewards say, is this one too
    return torch.device("cuda", wanted)


def _why_no_gpu() -> str:
    return "its build has no CUDA" if torch.version.cuda is None else "no driver, or CUDA_VISIBLE_DEVICES hides it"


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def shard(total: int) -> slice:
    """This rank's contiguous rows of `total`; the ranks' counts differ by at most one, and some may be zero."""
    return shard_of(total, rank(), world_size())


def shard_of(total: int, rank: int, world_size: int) -> slice:
    """The rows of any one rank. Together the shards cover range(total) once, in rank order."""
    return slice(total * rank // world_size, total * (rank + 1) // world_size)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, written into `tensor` and returned. Any shape, the same on every rank."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_gather_rows(tensor: Tensor) -> Tensor:
    """(n_rank, *) -> (sum of n_rank, *), in rank order. Ranks may have different row counts, or none."""
    if not dist.is_initialized():
        return tensor
    counts = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.full_like(counts[0], len(tensor)))
    longest = int(max(counts))
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts)])


def gather_objects(items: list[Any]) -> list[Any]:
    """The ranks' lists joined in rank order, on every rank. For small things: prompts, metadata, messages."""
    if not dist.is_initialized():
        return items
    parts: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def together(work: Callable[[], T]) -> T:
    """What `work` returns on this rank. Where it fails on one rank, all raise: none is left waiting for another.

    No collective may be in `work`: the rank that fails would miss it.
    """
    done: list[T] = []
    failure = None
    try:
        done.append(work())
    except (Exception, SystemExit) as error:
        failure = error
    failures = gather_objects([_portable(failure)] if failure else [])
    if failures:
        raise shared(failure or failures[0])
    return done[0]


def shared(error: E) -> E:
    """Mark an error that every rank raises at the same place, so that they can go on together after it."""
    setattr(error, _SHARED, True)
    return error


def is_shared(error: BaseException) -> bool:
    """Whether all ranks raise this error, and so may meet in collectives afterwards."""
    return world_size() == 1 or getattr(error, _SHARED, False)


def _portable(error: BaseException) -> BaseException:
    """The error, or its text where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def broadcast(tensors: Iterable[Tensor], source: int = 0) -> None:
    """Overwrite the tensors of every rank with those of `source`, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), source)


@torch.no_grad()
def all_reduce_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum `.grad` over ranks, in one transfer. Every rank must pass the same parameters; a missing gradient is zero."""
    if not dist.is_initialized():
        return
    parameters = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    parts = all_reduce_sum(flat).split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts):
        p.grad = part.view_as(p)
