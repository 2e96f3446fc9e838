"""The peak of memory held by tensors inside a block: CUDA's own count, or on the CPU a count of live storages.

On the CPU every operator's results are watched, which slows the block down; what a kernel uses inside itself is not
seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak:
    """Bytes, while the block runs and after it."""

    bytes: int = 0


@contextmanager
def peak_memory(held: Iterable[Tensor], device: torch.device) -> Iterator[Peak]:
    """Inside the block the peak grows. held: tensors from before the block that count, each storage once."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            torch.cuda.synchronize(device)
            peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    with _Storages(peak) as live:
        for tensor in held:
            live.note(tensor)
        yield peak


class _Storages(TorchDispatchMode):
    """Counts the bytes of all storages that operators return, until they are freed."""

    def __init__(self, peak: Peak) -> None:
        super().__init__()
        self._peak, self._now = peak, 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            if self._seen.pop(key, None) is not None:
                self._now -= size

        self._seen[key] = weakref.ref(storage, freed)
        self._now += size
        self._peak.bytes = max(self._peak.bytes, self._now)
