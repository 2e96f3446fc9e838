"""Ctrl-C as a request: the loop finishes the iteration, saves and stops. A second one stops at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch

from dgpo import distributed

NOTICE = b"\nStopping after this iteration; its state will be saved. Once more stops at once.\n"


class Interrupt:
    """While active, SIGINT and SIGTERM only set a flag, which all ranks agree on. In the main thread only."""

    def __init__(self) -> None:
        self._flag = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether any rank was asked to stop."""
        return distributed.all_reduce_sum(torch.tensor(float(self._flag))).item() > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._flag:
            raise KeyboardInterrupt
        self._flag = True
        if distributed.is_main():
            # a handler may run in the middle of a print, which a second print would break
            os.write(2, NOTICE)
