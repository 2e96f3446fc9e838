"""Ranks of a sharded network call it equally often: every forward gathers weights from all of them.

Ranks differ in their numbers of images, and one may fail between two calls. So before each call the ranks tell each
other what they want next, which is one small sum. A rank that has nothing left to do takes part in the calls of others;
where one has failed, all stop. What fails inside a call, or between a forward and its backward, cannot be told: the
other ranks wait in that very call, until the process of the failed one has gone, or for the longest time that a rank
may wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

from dgpo.distributed.process_group import world_size
from dgpo.distributed.watch import meets, wait
from dgpo.utils.devices import await_kernels

_FAILED = -1


class Stopped(Exception):
    """Raised in a call of the network when another rank has failed, which raises its own error."""


class Call(NamedTuple):
    """A forward of a weight set, and whether a backward follows it."""

    weights: str
    trains: bool


class Lockstep:
    """Agrees on the next call. It is the process's `current` one once it is made."""

    def __init__(self, weights: Sequence[str], take_part: Callable[[Call], None]) -> None:
        """weights: all sets, in the order in which an update asks them; take_part: does a call that others want."""
        self._calls = [Call(name, trains) for trains in (False, True) for name in weights]
        self._take_part = take_part
        self.inside = False
        """Whether a call, or the backward that follows it, may not have ended."""
        global _current
        _current = self

    @contextmanager
    def call(self, weights: str) -> Iterator[None]:
        """Wait until this forward is the next of all ranks, and take part in those before it."""
        wanted = Call(weights, torch.is_grad_enabled() and weights == "policy")
        while (agreed := self._agree(self._calls.index(wanted))) != wanted:
            if agreed is None:
                raise Stopped
            self._help(agreed)
        self._begin()
        with torch.set_grad_enabled(wanted.trains):
            yield
        if not wanted.trains:  # else the backward is still to come
            self._end()

    def finish(self, failed: bool) -> None:
        """Take part in the calls of others until no rank wants any, or one has failed."""
        if self.inside:
            self._end()
        own = _FAILED if failed else len(self._calls)
        while (agreed := self._agree(own)) is not None:
            self._help(agreed)

    def leave(self) -> None:
        """Note that this process is inside no call, and waits for nobody."""
        self.inside = False
        wait(False)

    def _help(self, call: Call) -> None:
        self._begin()
        self._take_part(call)
        self._end()

    def _begin(self) -> None:
        self.inside = True
        wait(True)

    def _end(self) -> None:
        await_kernels()  # the call is only queued, and the wait would be elsewhere
        self.leave()

    @meets
    def _agree(self, own: int) -> Call | None:
        """The next call of all ranks; None where one has failed or all are done."""
        number = torch.tensor(own)
        dist.all_reduce(number, dist.ReduceOp.MIN)
        return self._calls[number] if 0 <= number < len(self._calls) else None


_current: Lockstep | None = None


def current() -> Lockstep | None:
    """The lockstep of this process's sharded network; None where nothing is sharded."""
    return _current if world_size() > 1 else None
