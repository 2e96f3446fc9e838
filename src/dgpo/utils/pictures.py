"""Between tensors and the 8-bit pictures of files: one rule for rounding, one for reading."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dgpo.errors import UserError


def levels(images: Tensor) -> Tensor:
    """The nearest of the 256 levels that a picture file holds. images: float in [0, 1]; returns 0 to 255, still float.

    What lies outside of [0, 1] takes the nearest end; NaN stays.
    """
    return images.clamp(0, 1).mul(255).round()


def to_bytes(images: Tensor) -> Tensor:
    """The same as uint8. images: (*, H, W). Raises ValueError on NaN, which would become a colour, and on infinity."""
    if not images.isfinite().all():
        raise ValueError("the picture has pixels that are not finite")
    return levels(images.detach().float()).to(torch.uint8)


def to_rows(images: Tensor) -> Tensor:
    """(*, 3, H, W) in [0, 1] -> (*, H, W, 3) uint8 on the CPU, contiguous, as other libraries take pictures."""
    return to_bytes(images).cpu().movedim(-3, -1).contiguous()


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an RGB picture of 8 bits."""
    return Image.fromarray(to_rows(image).numpy())


def to_png(image: Tensor) -> bytes:
    """(3, H, W) in [0, 1] -> a PNG file of 8 bits."""
    file = io.BytesIO()
    to_pil(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def from_pil(picture: Image.Image) -> Tensor:
    """An 8-bit picture -> (channels, H, W) fp32 in [0, 1]."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, -1).permute(2, 0, 1).float() / 255


def image_size(path: Path, formats: tuple[str, ...], failure: str) -> tuple[int, int]:
    """(width, height), from the file's head. formats: those of Pillow; failure: how the UserError begins."""
    with _opened(path, formats, failure) as image:
        return image.size


def read_image(path: Path, formats: tuple[str, ...], failure: str) -> Tensor:
    """(3, H, W) fp32 in [0, 1]. Arguments as in `image_size`."""
    with _opened(path, formats, failure) as image:
        return from_pil(image.convert("RGB"))


@contextmanager
def _opened(path: Path, formats: tuple[str, ...], failure: str) -> Iterator[Image.Image]:
    """A file that ends too early fails only in the block, when its pixels are read."""
    try:
        with Image.open(path, formats=formats) as image:
            yield image
    except OSError as error:
        raise UserError(f"{failure} {str(path)!r}: {error}") from error
