"""Rewards that need no model: the size of the picture as a JPEG file (Black et al. 2023, arXiv 2305.13301), colours.

They are for demonstrations and tests of a set-up: each can be seen with the naked eye.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from dgpo.utils.pictures import to_pil

QUALITY = 95  # of the JPEG file, as in the paper's code


def jpeg_incompressibility(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """The size of a JPEG of quality 95 in kB (1000 bytes): more detail, more reward. (B, 3, H, W) -> (B,) > 0."""
    return torch.tensor([_jpeg_bytes(image) / 1000 for image in images])


def jpeg_compressibility(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """Minus that size in kB: smoother, more reward. (B, 3, H, W) -> (B,) < 0. Flow-GRPO's code divides it by 500."""
    return -jpeg_incompressibility(images, prompts, metadata)


def brightness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """The mean of all pixels. (B, 3, H, W) -> (B,) in [0, 1]: 0 black, 1 white."""
    return images.mean((1, 2, 3))


def redness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """Red minus the mean of green and blue. (B, 3, H, W) -> (B,) in [-1, 1]: 1 pure red, 0 grey."""
    red, green, blue = images.mean((2, 3)).unbind(1)
    return red - (green + blue) / 2


def _jpeg_bytes(image: Tensor) -> int:
    file = io.BytesIO()
    to_pil(image).save(file, "JPEG", quality=QUALITY)
    return file.tell()
