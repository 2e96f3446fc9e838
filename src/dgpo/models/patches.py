"""Latents as the tokens of 2x2 patches, as FLUX and Qwen-Image take them, and back."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(latents: Tensor) -> Tensor:
    """Each 2x2 patch as a token: (n, C, h, w) -> (n, h w / 4, 4 C)."""
    return pixel_unshuffle(latents, 2).flatten(2).mT


def unpack(tokens: Tensor, height: int) -> Tensor:
    """The inverse: (n, h w / 4, 4 C) -> (n, C, h, w)."""
    return pixel_shuffle(tokens.mT.unflatten(2, (height // 2, -1)), 2)
