"""A signal as a request: the loop finishes the iteration, saves and stops. A second Ctrl-C stops at once.

SIGTERM (a scheduler, `kill`), SIGHUP (the terminal is gone) and SIGUSR1 (a scheduler's warning) ask as Ctrl-C does.
Before the loop there is nothing to save, and a signal stops at once, with a word. The command line listens from its
first moment, so this file imports torch only where the loop asks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

NOTICE = b"\nStopping after this iteration; its state will be saved. Ctrl-C stops at once.\n"
BEFORE_THE_LOOP = (
    " before the first iteration; nothing is lost. Start again, with --resume if the run folder already holds a "
    "checkpoint"
)
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has the first two


class Stopped(KeyboardInterrupt):
    """A signal came while there was nothing to finish first."""


class Interrupt:
    """While active, signals raise Stopped, and once `defer` was called only set a flag, which all ranks agree on.

    In the main thread only. A signal that is ignored, as SIGHUP is under nohup, stays so.
    """

    def __init__(self, advice: str = BEFORE_THE_LOOP) -> None:
        """advice: what `Stopped` says after the signal's name."""
        self._advice = advice
        self._flag = False
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
            handled = [n for n in numbers if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def defer(self) -> None:
        """From now on wait for `requested`."""
        self._deferred = True

    def requested(self) -> bool:
        """Whether any rank was asked to stop."""
        import torch

        from dgpo import distributed

        return distributed.all_reduce_sum(torch.tensor(float(self._flag))).item() > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred:
            message = f"stopped by {signal.Signals(number).name}{self._advice}"
            if _importing_torch():
                os.write(2, f"dgpo: {message}\n".encode())
                os._exit(130)
            raise Stopped(message)
        if self._flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self._flag = not self._flag, True
        from dgpo import distributed  # loaded long ago, by whatever deferred

        if first and distributed.is_main():
            # a handler may run in the middle of a print, which a second print would break; the terminal may be gone
            with contextlib.suppress(OSError):
                os.write(2, NOTICE)


def _importing_torch() -> bool:
    """Whether torch is just being imported, whose C code drops what a handler raises; nothing is written by then."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return getattr(spec, "_initializing", False)
