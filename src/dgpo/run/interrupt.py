"""A signal as a request: the loop finishes the iteration, saves and stops. A second Ctrl-C stops at once.

SIGTERM (a scheduler, `kill`) and SIGUSR1 (a scheduler's warning) come some seconds before a kill: grace.py sees to it.
Under torchrun every signal does, since torchrun kills what it has passed a signal on to. SIGHUP (the terminal is gone)
asks as Ctrl-C does. Before the first iteration, also in the evaluation before it, there is nothing to save, and a
signal stops at once, with a word; several processes, which must agree, end that evaluation first. The command line
listens from its first moment, so this file imports torch only where the loop asks.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

STOPPED = 130
"""Exit code of a command that a person has stopped."""
REQUEUE = 75
"""Exit code of a run that a scheduler's signal has stopped: the same command, or --resume, goes on. EX_TEMPFAIL."""

NOTICE = b"\nStopping after this iteration; its state will be saved. Ctrl-C stops at once.\n"
HURRIED = (
    b"\nStopping after this iteration if that fits the grace time, else at once without it; what is finished will be "
    b"saved.\n"
)
BEFORE_THE_LOOP = (
    " before the first iteration; nothing is lost. Start again, with --resume if the run folder already holds a "
    "checkpoint"
)
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has the first two
OF_SCHEDULERS = ("SIGTERM", "SIGUSR1")


class Stopped(KeyboardInterrupt):
    """A signal came while there was nothing to finish first."""

    def __init__(self, message: str, code: int = STOPPED) -> None:
        super().__init__(message)
        self.code = code


class Interrupt:
    """While active, signals raise Stopped, and once `defer` was called only set a flag, which all ranks agree on.

    `listen` comes before: signals still raise Stopped, and another thread hears of them.

    In the main thread only. A signal that is ignored, as SIGHUP is under nohup, stays so.
    """

    def __init__(self, advice: str = BEFORE_THE_LOOP) -> None:
        """advice: what `Stopped` says after the signal's name."""
        self._advice = advice
        self._code = 0
        self._deferred = False
        self._before: dict[int, Any] = {}
        self._woken = threading.Event()
        self._ends: tuple[socket.socket, socket.socket] | None = (
            None  # the kernel's signal handler writes, `heard` reads
        )
        self._woken_before = -1

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
            handled = [n for n in numbers if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        if self._ends is not None:
            signal.set_wakeup_fd(self._woken_before)
            for end in self._ends:
                end.close()
            self._ends = None
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def defer(self) -> None:
        """From now on wait for `requested`."""
        self._deferred = True

    def listen(self, advice: str) -> None:
        """From now on tell another thread by `heard`, which ends the process where the main one cannot.

        advice: what `Stopped` says instead
        """
        self._advice = advice
        if self._before and self._ends is None:
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
            self._woken_before = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)

    def heard(self, seconds: float | None) -> str | None:
        """The name of the next signal, waited for so long, or for ever: also while the main thread waits in C code."""
        if self._ends is None:
            self._woken.wait(seconds)
            return None
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            if select.select([self._ends[0]], [], [], seconds)[0]:
                number = self._ends[0].recv(1)[0]
                return signal.Signals(number).name if number in self._before else None
        return None

    def wake(self) -> None:
        """Let `heard` return None."""
        self._woken.set()
        if self._ends is not None:
            with contextlib.suppress(OSError):
                self._ends[1].send(b"\0")

    def requested(self) -> int:
        """The exit code of what any rank was asked: REQUEUE before STOPPED before 0, go on."""
        import torch

        from dgpo import distributed

        asked = torch.tensor([float(self._code == code) for code in (REQUEUE, STOPPED)])
        by_scheduler, by_person = distributed.all_reduce_sum(asked).tolist()
        return REQUEUE if by_scheduler else STOPPED if by_person else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._deferred:
            message = f"stopped by {name}{self._advice}"
            # of commands that cannot go on none is worth another try
            code = REQUEUE if name in OF_SCHEDULERS and self._advice else STOPPED
            if _importing_torch():
                os.write(2, f"dgpo: {message}\n".encode())
                os._exit(code)
            raise Stopped(message, code)
        if self._code and number == signal.SIGINT:
            raise KeyboardInterrupt
        first = not self._code
        self._code = REQUEUE if name in OF_SCHEDULERS or self._code == REQUEUE else STOPPED
        from dgpo import distributed  # loaded long ago, by whatever deferred

        if first and distributed.is_main():
            say(HURRIED if hurries(name) else NOTICE)


def hurries(name: str) -> bool:
    """Whether who sends this signal kills the process soon after."""
    return name in OF_SCHEDULERS or "TORCHELASTIC_RUN_ID" in os.environ


def say(text: bytes) -> None:
    """Write to standard error from a handler or thread, amid whatever is printed there; the terminal may be gone."""
    with contextlib.suppress(OSError):
        os.write(2, text)


def _importing_torch() -> bool:
    """Whether torch is just being imported, whose C code drops what a handler raises; nothing is written by then."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return getattr(spec, "_initializing", False)
