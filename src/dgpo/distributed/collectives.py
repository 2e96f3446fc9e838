"""What the processes of a run tell each other. With one process everything here is a no-op."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dgpo.distributed import lockstep
from dgpo.distributed.process_group import is_main, world_size
from dgpo.distributed.watch import lost, meets

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_SHARED = "dgpo_raised_on_every_rank"
TRANSFER = 2**28
"""Bytes of gradients that are sent together."""


@meets
def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, written into `tensor` and returned. Any shape, the same on every rank."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


@meets
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


@meets
def gather_objects(items: list[Any]) -> list[Any]:
    """The ranks' lists joined in rank order, on every rank. For small things: prompts, metadata, messages."""
    if not dist.is_initialized():
        return items
    parts: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def together(work: Callable[[], T]) -> T:
    """What `work` returns on this rank. Where it fails on one rank, all raise: none is left waiting for another.

    No collective may be in `work`, but for calls of a sharded network: the rank that fails would miss it. An error from
    inside such a call is raised at once, since the others cannot be reached; RankLost, where one of them has gone.
    """
    done: list[T] = []
    failure = None
    steps = lockstep.current()
    try:
        done.append(work())
    except lockstep.Stopped:
        steps = None  # another rank has failed, and this one knows
    except (Exception, SystemExit) as error:
        if steps is not None and steps.inside:
            _raise_alone(steps, error)
        failure = error
    if steps is not None:
        try:
            steps.finish(failure is not None)
        except Exception as error:
            _raise_alone(steps, error)
    failures = gather_objects([_portable(failure)] if failure else [])
    if failures:
        raise shared(failure or failures[0])
    return done[0]


def _raise_alone(steps: lockstep.Lockstep, error: BaseException) -> NoReturn:
    """Raise an error of which the others cannot be told; from inside a call RankLost, where one of them has gone."""
    if steps.inside:
        steps.leave()
        gone = lost(error)
        if gone is not None:
            raise gone from error
    raise error


def on_main(work: Callable[[], object]) -> None:
    """Let the main process do this. Where it fails, all raise."""
    together(lambda: work() if is_main() else None)


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


@torch.no_grad()
def all_reduce_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum `.grad` over ranks. Every rank must pass the same parameters; a missing gradient is zero.

    In transfers of `TRANSFER` bytes, or of one larger gradient: what is sent is a copy beside the gradients.
    """
    if not dist.is_initialized():
        return
    for some in _by_size([*parameters], TRANSFER):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in some])
        for p, part in zip(some, all_reduce_sum(flat).split([p.numel() for p in some])):
            p.grad = part.view_as(p)


def _by_size(parameters: list[torch.nn.Parameter], most: int) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters one after another, as many together as have `most` bytes."""
    some, size = list[torch.nn.Parameter](), 0
    for p in parameters:
        if some and size + p.nbytes > most:
            yield some
            some, size = [], 0
        some.append(p)
        size += p.nbytes
    if some:
        yield some
