"""What the pictures of all worlds have in common: their size, and the pale tint that lies behind what they show."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dgpo.errors import UserError

IMAGE_SIZE = 64
TINTS: tuple[tuple[int, int, int], ...] = ((250, 250, 250), (250, 240, 226), (228, 240, 250), (232, 246, 230))
PALE = 0.8  # in every channel, from which on a pixel counts as ground


def palette(colors: Iterable[tuple[int, int, int]], device: torch.device | str = "cpu") -> Tensor:
    """Colours of 0 to 255 a channel -> (n, 3) fp32 in [0, 1]."""
    return torch.tensor([*colors], device=device) / 255


def nearest_tint(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B,) int64 index into TINTS, by the mean of the pale pixels."""
    pale = (images.amin(1, keepdim=True) > PALE).float()
    mean = (images * pale).sum((2, 3)) / pale.sum((2, 3)).clamp(min=1)
    return torch.cdist(mean, palette(TINTS)).argmin(1)


def require_size(images: Tensor, world: str) -> None:
    """Refuse what is no batch of a world's pictures."""
    if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        given = tuple(images.shape)
        raise UserError(f"the {world} world reads images (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}); got {given}")
