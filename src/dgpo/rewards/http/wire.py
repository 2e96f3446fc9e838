"""What a server of rewards and its clients say to each other: protocol 1, plain enough for any language.

    GET  /health   -> 200, JSON {"status": "ok", "waiting": images that wait or are being scored}; asks for no token
    GET  /version  -> 200, JSON `Version`
    POST /score    `Request` -> 200, `Answer`; both are msgpack maps whose keys are the fields below
    POST /check    `Rows` -> 200, `Checked`, the same way; only of a server whose `Version` says that it checks rows
    anything else  -> JSON `Problem`, with one of these codes
        400 no valid request     401 the token is missing or wrong
        413 more images, pixels or bytes than the server takes at once; `Version` says how many
        422 the reward refuses an image or its prompt                 500 the reward failed
        502 the reward asks another server, and that one is away
        503 too much is waiting; come back after the seconds of the header Retry-After

A server that has a token wants it as `Authorization: Bearer TOKEN`. Images travel as PNG files (8 bit), or exactly, as
fp32. Metadata travel as JSON texts, since msgpack's types are not JSON's. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgpo.errors import Extra
from dgpo.utils.pictures import from_pil, to_png

with Extra("remote", "a remote reward"):
    import msgspec

PROTOCOL = 1
ABOUT_IMAGES = frozenset({400, 413, 422, 500})  # codes of a server that has looked at what it was sent
Encoding = Literal["raw", "png"]
Size = Annotated[int, msgspec.Meta(ge=1)]
# checked before the entries are read: without it 128 MB of empty texts would become gigabytes of objects
Listed = msgspec.Meta(max_length=65_536)


class Raw(msgspec.Struct, tag="raw", tag_field="encoding"):
    """shape: of the images; data: their values in [0, 1] as little-endian fp32, the last dimension fastest."""

    shape: tuple[Size, Literal[3], Size, Size]  # (n, 3, H, W)
    data: bytes


class Png(msgspec.Struct, tag="png", tag_field="encoding"):
    """files: one PNG file an image, 8-bit RGB, all of one size."""

    files: Annotated[list[bytes], Listed]


class Request(msgspec.Struct):
    """n images to score. id: any text, repeated by the answer; metadata: n texts, each a JSON object."""

    protocol: Literal[1]
    id: str
    images: Raw | Png
    prompts: Annotated[list[str], Listed]
    metadata: Annotated[list[str], Listed]


class Scores(msgspec.Struct):
    """values: n finite numbers, in the order of the images."""

    name: str
    values: list[float]


class Answer(msgspec.Struct):
    """Of `scores` the first is the one that is weighted; the others are reported beside it."""

    protocol: Literal[1]
    id: str
    reward: str
    scores: list[Scores]


class Version(msgspec.Struct):
    """dgpo: the server's version, or whatever it calls itself; the three with max limit one request.

    max_pixels: of all its images together; None: as many as its bytes hold. image_side: of the square images that the
    reward reads, in pixels; None: it reads any. checks_rows: whether prompts can be shown to it before a run
    """

    protocol: int
    dgpo: str
    reward: str
    required_metadata: list[str]
    max_images: Size
    max_bytes: Size
    max_pixels: Size | None = None
    image_side: Size | None = None
    checks_rows: bool = False


class Rows(msgspec.Struct):
    """n prompts that a reward is asked about before a run. metadata: n texts, each a JSON object."""

    protocol: Literal[1]
    prompts: Annotated[list[str], Listed]
    metadata: Annotated[list[str], Listed]


class Checked(msgspec.Struct):
    """By the number of its row: why the reward cannot score it, and what it may score otherwise than meant."""

    protocol: Literal[1]
    refused: dict[int, str]
    doubts: dict[int, str]


class Problem(msgspec.Struct):
    """index: of the image that is at fault, where one is."""

    error: str
    index: int | None = None


class BadImages(ValueError):
    """Images that cannot be read, the first of them at `index`."""

    def __init__(self, problem: str, index: int | None = None) -> None:
        super().__init__(problem)
        self.index = index


def pack_images(images: Tensor, encoding: Encoding) -> Raw | Png:
    """images (n, 3, H, W) float in [0, 1] on the CPU. "png" rounds them to 8 bits."""
    if encoding == "raw":
        n, _, height, width = images.shape
        return Raw((n, 3, height, width), images.numpy().astype("<f4").tobytes())
    return Png([to_png(image) for image in images])


class TooLarge(BadImages):
    """Images of more pixels than a limit allows."""


class Shape(NamedTuple):
    """What all images of a request have in common, and how many there are."""

    count: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Of all images together."""
        return self.count * self.height * self.width


def read_shape(images: Raw | Png) -> Shape:
    """From what the request says of its images, before any of them is decompressed. Raises BadImages."""
    if isinstance(images, Raw):
        count, _, height, width = images.shape
        return Shape(count, height, width)
    sizes = [_png_size(file, i) for i, file in enumerate(images.files)]
    odd = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if odd is not None or not sizes:
        raise BadImages("the images of a request must be at least one, all of one size", odd)
    return Shape(len(sizes), *sizes[0])


def unpack_images(images: Raw | Png, max_pixels: int) -> Tensor:
    """(n, 3, H, W) fp32 in [0, 1]; H * W is at most max_pixels. Raises BadImages."""
    count, height, width = read_shape(images)
    if height * width > max_pixels:
        raise TooLarge(f"an image of {width}x{height} pixels has more than {max_pixels}", 0)
    if isinstance(images, Png):
        values = torch.empty(count, 3, height, width)
        for i, file in enumerate(images.files):
            values[i] = _read_png(file, i)
        return values
    expected = 4 * math.prod(images.shape)
    if len(images.data) != expected:
        raise BadImages(f"images of shape {images.shape} are {expected} bytes of fp32; got {len(images.data)}")
    values = torch.from_numpy(np.frombuffer(images.data, "<f4").astype(np.float32)).view(images.shape)
    wrong = next((i for i, image in enumerate(values) if not ((image >= 0) & (image <= 1)).all()), None)
    if wrong is not None:
        raise BadImages("pixels must be finite and in [0, 1]", wrong)
    return values


def _png_size(file: bytes, index: int) -> tuple[int, int]:
    """Height and width from the first chunk of a PNG file, which must be its header."""
    if len(file) < 26 or file[:8] != b"\x89PNG\r\n\x1a\n" or file[12:16] != b"IHDR":
        raise BadImages("the file is no PNG that can be read (it does not begin with a PNG header)", index)
    width, height = struct.unpack(">II", file[16:24])
    return height, width


def _read_png(file: bytes, index: int) -> Tensor:
    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as picture:  # Pillow's own limit of pixels holds too
            if picture.mode != "RGB":
                raise BadImages(f"the PNG has mode {picture.mode}; it must be 8-bit RGB", index)
            if (picture.height, picture.width) != _png_size(file, index):
                raise BadImages("the PNG has two headers that differ", index)
            return from_pil(picture)
    except BadImages:
        raise
    except Exception as error:  # a broken file fails in as many ways as there are files
        raise BadImages(f"the file is no PNG that can be read ({error})", index) from None
