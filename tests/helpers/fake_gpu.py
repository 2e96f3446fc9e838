"""Stands in for a GPU where parts and averages visit it: copies that are made for it, and how long they live."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor


class FakeGpu:
    """Copies that were made for it and are alive, the most bytes of them at once, and the sizes of all that came."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self.peak, self.came = 0, list[int]()

    def copied(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Takes the place of `visits.copied`."""
        copy = tensor.clone()
        self.alive[copy.data_ptr()] = copy.nbytes
        weakref.finalize(copy.untyped_storage(), self.alive.pop, copy.data_ptr())
        self.came.append(copy.nbytes)
        self.peak = max(self.peak, sum(self.alive.values()))
        return copy
