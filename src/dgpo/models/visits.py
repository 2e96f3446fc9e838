"""What lives in host memory and visits the device one after another: frozen parts of a pipeline, averages of weights.

The copy on the host stays: what leaves the device is dropped there, not copied back, so that a visit costs one copy in
and changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from dgpo.core.ema import ema_update


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
        self._here = []  # until all is there: the device may be too small
        for part in parts:
            for tensor in (*part.parameters(), *part.buffers()):
                if id(tensor) not in self._ids:
                    home = tensor.data
                    tensor.data = copied(home, self._device)
                    self._homes.append((tensor, home))
        self._here = [*parts]


@final
class Averages:
    """Weight sets that live in host memory, of which one at a time is on the device, while it computes with it.

    An average follows the policy on the device, one tensor at a time, by the very operator that moves one that lives
    there: so the numbers are the same.
    """

    def __init__(self, device: torch.device, sets: Mapping[str, Sequence[Tensor]]) -> None:
        """sets: name -> its tensors, on the host, whose data come and go"""
        self._device = device
        self._homes = {name: [(tensor, tensor.data) for tensor in tensors] for name, tensors in sets.items()}
        self._here: str | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def only(self, name: str) -> None:
        """Bring this set to the device, after any other has left it; a set that does not live here only lets it go."""
        if self._here == name:
            return
        self.leave()
        if name in self._homes:
            for tensor, home in self._homes[name]:
                tensor.data = copied(home, self._device)
            self._here = name

    def leave(self) -> None:
        """Leave none on the device."""
        self._here = None
        for visitors in self._homes.values():
            for tensor, home in visitors:
                tensor.data = home

    def follow(self, own: Iterable[Tensor], policy: Iterable[Tensor], decay: float) -> None:
        """own <- decay * own + (1 - decay) * policy. own: a set's tensors on the host."""
        self.leave()
        for home, new in zip(own, policy, strict=True):
            here = copied(home, self._device)
            ema_update([here], [new], decay)
            home.copy_(here)


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device."""
    return tensor.to(device)
