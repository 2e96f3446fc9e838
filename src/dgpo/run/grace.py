"""The end of a run within the time that a scheduler leaves it, and the end of one that has lost a process.

SIGTERM and SIGUSR1 announce that the process will be killed `grace_seconds` later. The iteration in progress, or the
evaluation, goes on if it will be done by then, by the pace so far; else it is dropped, and the last finished iteration
is saved at once. The same is done where a process of the run has died or hangs (distributed/watch.py).

A thread does this, since the main one may wait for a slow reward or for another process and hears nothing. It saves
while the main thread is held before its next optimizer step, and then ends the process: a reward's thread and a
collective cannot be ended alone. Of several processes the first decides and saves, and the others wait for that.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from typing import NoReturn

import torch

from dgpo import distributed
from dgpo.run.interrupt import REQUEUE, STOPPED, Interrupt, hurries, say
from dgpo.utils.devices import on_this_device

STOP, DROP, SAVED = "stop", "drop", "saved"
"""On the board of the processes: the signal that one has heard; the first one will save; it has saved."""
POLL = 0.5
"""Seconds between two looks at the board, where there are several processes."""
WAIT_FOR_SAVING = 120
"""Seconds that the others give the first process to save, where one of them was lost."""


class Grace:
    """Used as a context around the loop, which says what it is at, and when its weights are no whole iteration's."""

    def __init__(
        self,
        interrupt: Interrupt,
        seconds: float,
        save: Callable[[bool], str],
        close: Callable[[], object],
        alone: bool = True,
    ) -> None:
        """save: makes a checkpoint of the last finished iteration, unless it is told False, as that is lost, and says
        how to go on; close: ends trackers and the lock; alone: whether one process has all that is saved
        """
        self._interrupt, self._seconds, self._save, self._close = interrupt, seconds, save, close
        self.save_seconds, self._alone = 0.0, alone
        self._number = next(_numbers)
        self._ending = threading.Lock()  # taken by the thread that ends the process
        self._whole = threading.Lock()  # held while the state is no whole iteration's, or is being saved
        self._mine = False  # whether the loop holds it
        self._open = True
        self._phase, self._since = "", time.monotonic()
        self._pace: dict[str, deque[float]] = {}
        on_gpu = torch.cuda.is_initialized()
        self._here = on_this_device() if on_gpu else int
        # the main thread's stream may be waiting for another process
        self._stream = torch.cuda.stream(torch.cuda.Stream()) if on_gpu else nullcontext()
        self._thread = threading.Thread(target=self._listen, name="grace", daemon=True)

    def __enter__(self) -> Grace:
        distributed.on_lost(self._lost)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.change()  # where a save is under way, the process ends with it
        self._open = False
        distributed.on_lost(None)
        self._interrupt.wake()
        self.settle()
        self._thread.join(2 * POLL)

    def begin(self, phase: str) -> None:
        """Note that the loop begins an iteration or an evaluation."""
        self._phase, self._since = phase, time.monotonic()

    def end(self) -> None:
        """Note that it is done."""
        self._pace.setdefault(self._phase, deque(maxlen=10)).append(time.monotonic() - self._since)
        self._phase = ""

    def change(self) -> None:
        """The state is about to be no whole iteration's. Waits for ever where the last one is being saved."""
        if not self._mine:
            self._whole.acquire()
            self._mine = True

    def settle(self) -> None:
        """The state is a whole iteration's again."""
        if self._mine:
            self._mine = False
            self._whole.release()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The loop saves, and nobody else does."""
        self.change()
        self.begin("save")
        try:
            yield
            self.save_seconds = time.monotonic() - self._since
        finally:
            self.begin("")
            self.settle()

    def _fits(self, until: float) -> bool:
        """Whether what the loop is at will be done by then: it takes as long as the longest of the last ones."""
        if not self._alone:  # to drop it would save nothing
            return time.monotonic() <= until
        longest = max(self._pace.get(self._phase, ()), default=0.0)
        return max(time.monotonic(), self._since + longest) <= until

    def _listen(self) -> None:
        self._here()
        several, asked, until = distributed.world_size() > 1, None, math.inf
        while self._open:
            pause = min(POLL if several else math.inf, max(0.0, until - time.monotonic()))
            name = self._interrupt.heard(None if pause == math.inf else pause)
            if name is not None and hurries(name) and asked is None:
                self._post(STOP, name)
            if asked is None and (asked := self._read(STOP)) is not None:
                until = time.monotonic() + self._seconds - self._reserve()
            if not distributed.is_main() and self._read(DROP) is not None:
                self._follow(self._seconds, _code(asked))
            if distributed.is_main() and asked is not None and not self._fits(until):
                self._drop(asked, until)
                return

    def _reserve(self) -> float:
        """Seconds that are kept for saving."""
        return self._seconds / 10 + 2 * self.save_seconds

    def _drop(self, signal: str, until: float) -> None:
        """Save without what the loop is at, and end the process; return only where the loop has ended meanwhile."""
        phase = self._phase or "rest"
        # amid optimizer steps there is nothing to save: they may be done by then
        whole = self._whole.acquire(timeout=max(0.0, until - time.monotonic()) + self._reserve() / 2)
        if self._open and self._ending.acquire(blocking=False):
            self._post(DROP, signal)
            text = f"stopped by {signal}; the {phase} in progress did not fit the {self._seconds:g} s until the kill. "
            self._leave(text + self._saved(whole), _code(signal))
        if whole:
            self._whole.release()

    def _lost(self, which: str) -> None:
        """Save and end the process: another one is gone, and the main thread waits for it for ever, or is it."""
        if not distributed.is_main():
            say(f"dgpo: rank {distributed.rank()}: {which}\n".encode())
            self._follow(WAIT_FOR_SAVING, 1)
        self._here()
        whole = self._whole.acquire(timeout=WAIT_FOR_SAVING if self._phase == "save" else 1)
        if self._open and self._ending.acquire(blocking=False):
            self._leave(f"the run has lost a process: {which}. {self._saved(whole)}", 1)
        if whole:
            self._whole.release()

    def _saved(self, whole: bool) -> str:
        try:
            with self._stream:
                return self._save(whole and self._alone)
        except Exception as error:
            return f"Saving failed: {type(error).__name__}: {error}."

    def _follow(self, seconds: float, code: int) -> NoReturn:
        """End this process, which is not the first, once that has saved."""
        until = time.monotonic() + seconds
        while self._read(SAVED) is None and time.monotonic() < until:
            time.sleep(POLL / 5)
        os._exit(code)

    def _leave(self, message: str, code: int) -> NoReturn:
        """End this process, which is the first; the others end by themselves."""
        say(f"\ndgpo: {message}\n".encode())
        closing = threading.Thread(target=self._close, daemon=True)  # a dashboard may not answer
        closing.start()
        closing.join(min(5.0, self._seconds / 10))
        self._post(SAVED, message)
        if distributed.world_size() > 1:
            time.sleep(2 * POLL)  # this process may hold the store, which the others have yet to read
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)

    def _post(self, name: str, text: str) -> None:
        with suppress(RuntimeError):  # the store may have gone
            distributed.board().post(f"{name}/{self._number}", text)

    def _read(self, name: str) -> str | None:
        with suppress(RuntimeError):
            return distributed.board().read(f"{name}/{self._number}")
        return None


_numbers = count()
"""Of the runs that this process makes one after the other, alike on all: each has texts of its own on the board."""


def _code(signal: str | None) -> int:
    return STOPPED if signal in ("SIGINT", "SIGHUP") else REQUEUE
