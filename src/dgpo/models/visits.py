"""Frozen parts of a pipeline that live in host memory and visit the device one after another.

The copy on the host stays: what leaves the device is dropped there, not copied back, so that a visit costs one copy in
and changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor, nn


@final
class Visits:
    """What is on the device now; all parts are on the host at first."""

    def __init__(self, device: torch.device, staying: Iterable[Tensor]) -> None:
        """staying: tensors of parts that are on the device all the time, for they train."""
        self._device = device
        self._staying = list(staying)  # which keeps their ids theirs
        self._ids = {id(tensor) for tensor in self._staying}
        self._here: list[nn.Module] = []
        self._homes: list[tuple[Tensor, Tensor]] = []  # a tensor that is on the device, and its data on the host

    def only(self, *parts: nn.Module) -> None:
        """Bring these parts to the device, after all others have left it."""
        if self._here == [*parts]:
            return
        while self._homes:
            tensor, home = self._homes.pop()
            tensor.data = home
        self._here = [*parts]
        for part in parts:
            for tensor in (*part.parameters(), *part.buffers()):
                if id(tensor) not in self._ids:
                    self._homes.append((tensor, tensor.data))
                    tensor.data = copied(tensor.data, self._device)


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device."""
    return tensor.to(device)
