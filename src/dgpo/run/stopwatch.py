"""Wall time by phase, and who hears how far a phase is. On CUDA a phase ends when its kernels have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dgpo.utils.progress import Tell, silent


class Stopwatch:
    """Adds up the seconds of named phases until `read` takes them."""

    def __init__(self, device: torch.device, tell: Tell = silent) -> None:
        """tell: hears of progress; whoever works in a phase calls it"""
        self.tell = tell
        self._device = device
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.add(name, self._now() - start)

    def add(self, name: str, seconds: float) -> None:
        """Seconds that were measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """{"time/PHASE": seconds} since the last call."""
        seconds, self._seconds = self._seconds, {}
        return {f"time/{name}": value for name, value in seconds.items()}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
