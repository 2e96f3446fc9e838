"""How like a picture is to what a reader drew again from its reading of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

TOLERANCE = 0.2  # mean absolute difference over the channels at which a pixel counts as wholly wrong
VISIBLE = 0.15  # difference from the ground in some channel


def likeness(images: Tensor, again: Tensor, ground: Tensor) -> Tensor:
    """(B,) in [0, 1], 1 where a picture is what was drawn again. images, again: (B, 3, H, W); ground: (B, 3) colours.

    The product of two means of closeness, 1 - |image - drawn again| / TOLERANCE: over what is visible, in the image or
    as drawn again, with one pixel around it, and over the ground.
    """
    close = (1 - (images - again).abs().mean(1) / TOLERANCE).clamp(min=0)  # (B, H, W)
    ground = ground[:, :, None, None]
    visible = torch.maximum((images - ground).abs(), (again - ground).abs()).amax(1, keepdim=True) > VISIBLE
    objects = max_pool2d(visible.float(), 3, 1, 1)[:, 0]
    return _mean(close, objects) * _mean(close, 1 - objects)


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over (H, W) of (B, H, W)."""
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
