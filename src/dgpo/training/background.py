"""A checkpoint that a thread writes while training goes on.

The loop copies what is saved to host memory, and the thread writes the copy: its files are those of any checkpoint,
whole or not there at all. One is written at a time. Where processes share the weights, each writes its own files, and
the loops agree, once all have, to put the checkpoint in place: no thread waits for another process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

from dgpo import distributed
from dgpo.run.interrupt import say

WAITING = b"\nThe checkpoint in progress is written to its end first. Ctrl-C stops without it.\n"


@final
class Background:
    """What is being written, on all ranks alike; nothing at first."""

    def __init__(self) -> None:
        self._writing: Future[Any] | None = None
        self._end: Callable[[Any], Path] | None = None
        self.seconds = 0.0
        """What the last one took this process to write."""

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is begun and not in place."""
        return self._writing is not None

    def begin(self, write: Callable[[], Any], end: Callable[[Any], Path]) -> None:
        """Let the thread write, when none is busy.

        write: without other ranks; end: puts in place what all have written, of which it gets this rank's result, and
        returns the checkpoint's folder
        """
        assert not self.busy
        writing = Future[Any]()
        threading.Thread(target=self._write, args=(writing, write), name="saving", daemon=True).start()
        self._writing, self._end = writing, end

    def finish(self, wait: bool) -> Path | None:
        """Put in place what is written, and return its folder; None where nothing is, or without `wait` not yet.

        All ranks call it. What made one fail is raised on all.
        """
        if self._writing is None:
            return None
        if not wait and not all(distributed.gather_objects([self._writing.done()])):
            return None
        try:
            written = distributed.together(self.wait)
        except Exception:
            self._writing = self._end = None
            raise
        end, self._writing, self._end = self._end, None, None  # with the copy that they hold
        return end(written) if end else None

    def wait(self) -> Any:
        """Wait for what this process writes, in any thread of it; raises what made that fail."""
        writing = self._writing  # the loop may take it away meanwhile
        return None if writing is None else writing.result()

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Whatever ends the block, what was begun is on disk after it, unless Ctrl-C ends the wait for that.

        Where the weights are shared and one rank fails alone, the others cannot put it in place.
        """
        try:
            yield
            self.finish(wait=True)
        except BaseException as error:
            if self._writing is not None and not self._writing.done() and distributed.is_main():
                say(WAITING)
            with suppress(Exception):  # the block's error is the one to tell
                if distributed.is_shared(error):
                    self.finish(wait=True)
                else:
                    self.wait()
            raise

    def _write(self, writing: Future[Any], write: Callable[[], Any]) -> None:
        began = time.monotonic()
        try:
            written = write()
        except BaseException as error:
            writing.set_exception(error)
        else:
            self.seconds = time.monotonic() - began
            writing.set_result(written)
