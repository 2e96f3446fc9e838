"""Reading what people give and writing what they find: one line of JSON, one picture, one file that is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dgpo.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its name `path` only once the block has ended well: whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    yield unfinished
    unfinished.replace(path)


def json_object(text: str, where: str, form: str = "an object in braces") -> dict[str, Any]:
    """The object that `text` holds. where: its place, and form: what was awaited, for the UserError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} is {text.strip()[:80]!r}; it must be {form}")
    return value


def image_size(path: Path, formats: tuple[str, ...], failure: str) -> tuple[int, int]:
    """(width, height), from the file's head. formats: those of Pillow; failure: how the UserError begins."""
    with _opened(path, formats, failure) as image:
        return image.size


def read_image(path: Path, formats: tuple[str, ...], failure: str) -> Tensor:
    """(3, H, W) fp32 in [0, 1]. Arguments as in `image_size`."""
    with _opened(path, formats, failure) as image:
        rgb = image.convert("RGB")
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3)
    return pixels.permute(2, 0, 1).float() / 255


@contextmanager
def _opened(path: Path, formats: tuple[str, ...], failure: str) -> Iterator[Image.Image]:
    """A file that ends too early fails only in the block, when its pixels are read."""
    try:
        with Image.open(path, formats=formats) as image:
            yield image
    except OSError as error:
        raise UserError(f"{failure} {str(path)!r}: {error}") from error
