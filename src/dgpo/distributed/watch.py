"""Signs of life of all processes, so that none waits longer than a stated time for one that has died or hangs.

A thread of every process writes into the launcher's store, each second: how often this process has met the others in a
collective, and what its run is at. A main thread that waits in gloo or NCCL hears and sees nothing, so this thread also
acts for it: where the wait is too long it names the missing processes on the board that all read, and each process then
calls what `on_lost` was given, or ends. Other texts that all must know may stand on the board too.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from dgpo.distributed.store import connected
from dgpo.errors import RankLost, RunFailed
from dgpo.utils.devices import await_kernels

P = ParamSpec("P")
R = TypeVar("R")

BEAT = 1.0
"""Seconds between two signs of life."""
LOST = "lost"
"""Stands on the board once a process is given up, and says which."""


class Sign(NamedTuple):
    """The last that a process has let the others know."""

    host: str
    pid: int
    beat: int  # how many signs there were
    met: int  # collectives that it has entered
    phase: str  # what its run is at
    seconds: float  # for how long

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Board:
    """Short texts by name that every process of the run reads. A single process has its own."""

    def __init__(self, store: Any = None) -> None:
        self._store, self._own = store, dict[str, str]()

    def post(self, name: str, text: str) -> None:
        """Put a text there. RuntimeError where the store has gone with the process that held it."""
        self._own[name] = text
        if self._store is not None:
            self._store.set(name, text)

    def read(self, name: str) -> str | None:
        """The text of this name, None where there is none. Never waits for it."""
        if name in self._own or self._store is None or not self._store.check([name]):
            return self._own.get(name)
        return self._store.get(name).decode()


class Watch:
    """Lets the others know of this process, and notices when it waits for one of them too long."""

    def __init__(self, board: Board, rank: int, world_size: int, timeout: float) -> None:
        """timeout: seconds that this process may wait in a collective"""
        self.board = board
        self.on_lost: Callable[[str], None] = _end
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._beat, self._met = 0, 0
        self._phase, self._phase_since = "starting", time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._waits_since: float | None = None

    def start(self) -> None:
        self._sign()
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(2 * BEAT)

    def at(self, phase: str) -> None:
        """Note what this process is at."""
        if phase != self._phase:
            self._phase, self._phase_since = phase, time.monotonic()

    def meet(self, collective: Callable[P, R], *given: P.args, **named: P.kwargs) -> R:
        """Call a collective and wait for it; where another process has gone, RankLost says which."""
        self._met += 1
        self.wait(True)
        try:
            result = collective(*given, **named)
            await_kernels()  # NCCL only queues it, and the wait would be elsewhere
            return result
        except RuntimeError as error:
            lost = self.lost(error)
            if lost is None:
                raise
            raise lost from error
        finally:
            self.wait(False)

    def wait(self, waits: bool) -> None:
        """From now on this process may be waiting for others; or it is no longer."""
        self._waits_since = time.monotonic() if waits else None

    def lost(self, error: BaseException) -> RankLost | None:
        """What an error amid an exchange means, if it means that another process has gone."""
        if not isinstance(error, RuntimeError) or isinstance(error, (torch.OutOfMemoryError, RunFailed)):
            return None
        missing = self.missing()
        return RankLost(f"{missing} ({_first_line(error)})") if missing else None

    def missing(self) -> str:
        """Which processes have died, or are not where this one waits for them, in words; none, "", where all are."""
        try:
            before = self._signs()
            time.sleep(2.5 * BEAT)
            now = self._signs()
        except RuntimeError:
            return "rank 0 or the launcher beside it, which holds the store of the run, cannot be reached any more"
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        unseen = [f"{self._called(rank)} has never begun" for rank in others if rank not in now]
        seen = [rank for rank in others if rank in now and rank in before]
        dead = [rank for rank in seen if now[rank].beat == before[rank].beat]
        late = [rank for rank in seen if rank not in dead and now[rank].met < self._met]
        lines = [
            *unseen,
            *(f"{self._called(rank)} ({now[rank]}) has died, or its machine cannot be reached" for rank in dead),
            *(
                f"{self._called(rank)} ({now[rank]}) lives, and has been at {now[rank].phase!r} for "
                f"{now[rank].seconds:.0f} s"
                for rank in late
            ),
        ]
        return "; ".join(lines)

    def _called(self, rank: int) -> str:
        return f"rank {rank} of {self._world_size}"

    def _run(self) -> None:
        while not self._closed.wait(BEAT):
            with suppress(RuntimeError):  # the store may have gone; the wait is still counted
                self._sign()
            try:
                lost = self.board.read(LOST)
            except RuntimeError:
                lost = None
            since = self._waits_since
            if lost is None and since is not None and time.monotonic() - since > self._timeout:
                missing = self.missing() or "all processes live, and the connection between them fails"
                if self._waits_since != since:  # it came at last
                    continue
                lost = f"waited {_span(self._timeout)} (rank_timeout_minutes) in vain: {missing}"
                with suppress(RuntimeError):
                    self.board.post(LOST, lost)
            if lost is not None:
                self.on_lost(lost)
                return

    def _sign(self) -> None:
        self._beat += 1
        seconds = round(time.monotonic() - self._phase_since)
        sign = Sign(socket.gethostname(), os.getpid(), self._beat, self._met, self._phase, seconds)
        self.board.post(f"sign/{self._rank}", json.dumps(sign))

    def _signs(self) -> dict[int, Sign]:
        told = {rank: self.board.read(f"sign/{rank}") for rank in range(self._world_size)}
        return {rank: Sign(*json.loads(text)) for rank, text in told.items() if text is not None}


_alone = Board()
_watch: Watch | None = None


def start(name: str, timeout: float) -> None:
    """Begin to watch over the processes of the group. name: their part of the launcher's store"""
    global _watch
    board = Board(dist.PrefixStore(name, connected(30)))  # a connection of its own: that of the group may be waiting
    _watch = Watch(board, dist.get_rank(), dist.get_world_size(), timeout)
    _watch.start()


def stop() -> None:
    """Watch no longer."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None


def board() -> Board:
    """What all processes read."""
    return _watch.board if _watch is not None else _alone


def at(phase: str) -> None:
    """Let the others know what this process is at."""
    if _watch is not None:
        _watch.at(phase)


def wait(waits: bool) -> None:
    """From now on this process may be waiting for others, outside of what `meets`; or it is no longer."""
    if _watch is not None:
        _watch.wait(waits)


def lost(error: BaseException) -> RankLost | None:
    """What an error amid an exchange, outside of what `meets`, means, if it means that a process has gone."""
    return None if _watch is None else _watch.lost(error)


def on_lost(act: Callable[[str], None] | None) -> None:
    """Call `act`, in a thread of its own, when a process is given up; it hears which. None: end at once."""
    if _watch is not None:
        _watch.on_lost = act or _end


def meets(collective: Callable[P, R]) -> Callable[P, R]:
    """Count a function's calls as meetings of all processes."""

    @functools.wraps(collective)
    def met(*given: P.args, **named: P.kwargs) -> R:
        return collective(*given, **named) if _watch is None else _watch.meet(collective, *given, **named)

    return met


def _end(lost: str) -> None:
    """There is nothing to save, and the main thread cannot be called back."""
    print(f"dgpo: {lost}", file=sys.stderr, flush=True)
    os._exit(1)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.3g} min"
