"""Conditioning as rows of named tensors: what every family's `encode` returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Rows:
    """n encoded prompts. Implements `dgpo.models.base.Cond`.

    Tensors of at least two dimensions are tokens, (n, L, ...): rows of different lengths are padded with zeros at the
    end where they meet, so a family whose lengths differ must keep a mask among its tensors.
    """

    tensors: dict[str, Tensor]  # name -> (n, ...)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: slice | Tensor) -> Rows:
        return Rows({name: tensor[index] for name, tensor in self.tensors.items()})

    def repeat(self, n: int) -> Rows:
        """Each row n times in a row: a, a, b, b."""
        return Rows({name: tensor.repeat_interleave(n, 0) for name, tensor in self.tensors.items()})

    def cat(self, *others: Rows) -> Rows:
        """These rows, then those of the others."""
        parts = (self, *others)
        return Rows({name: _joined([part.tensors[name] for part in parts]) for name in self.tensors})

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on another device."""
        return Rows({name: tensor.to(device) for name, tensor in self.tensors.items()})


def _joined(parts: list[Tensor]) -> Tensor:
    """(n, L, ...) tensors under each other, the shorter ones lengthened with zeros; (n,) tensors as they are."""
    if parts[0].ndim > 1:
        longest = max(part.shape[1] for part in parts)
        parts = [pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1])) for part in parts]
    return torch.cat(parts)
