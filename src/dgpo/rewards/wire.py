"""What a server of rewards and its clients say to each other: protocol 1, plain enough for any language.

    GET  /health   -> 200, JSON {"status": "ok", "waiting": images that wait or are being scored}; asks for no token
    GET  /version  -> 200, JSON `Version`
    POST /score    `Request` -> 200, `Answer`; both are msgpack maps whose keys are the fields below
    anything else  -> JSON `Problem`, with one of these codes
        400 no valid request     401 the token is missing or wrong    413 more images or bytes than `Version` says
        422 the reward refuses an image or its prompt                 500 the reward failed
        503 too much is waiting; come back after the seconds of the header Retry-After

A server that has a token wants it as `Authorization: Bearer TOKEN`. Images travel as PNG files (8 bit), or exactly, as
fp32. Metadata travel as JSON texts, since msgpack's types are not JSON's. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import math
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgpo.errors import Extra
from dgpo.rewards.preprocess import to_png

with Extra("remote", "a remote reward"):
    import msgspec

PROTOCOL = 1
Encoding = Literal["raw", "png"]
Size = Annotated[int, msgspec.Meta(ge=1)]


class Raw(msgspec.Struct, tag="raw", tag_field="encoding"):
    """shape: of the images; data: their values in [0, 1] as little-endian fp32, the last dimension fastest."""

    shape: tuple[Size, Literal[3], Size, Size]  # (n, 3, H, W)
    data: bytes


class Png(msgspec.Struct, tag="png", tag_field="encoding"):
    """files: one PNG file an image, 8-bit RGB, all of one size."""

    files: list[bytes]


class Request(msgspec.Struct):
    """n images to score. id: any text, repeated by the answer; metadata: n texts, each a JSON object."""

    protocol: Literal[1]
    id: str
    images: Raw | Png
    prompts: list[str]
    metadata: list[str]


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
    """dgpo: the server's version, or whatever it calls itself; the last two limit one request."""

    protocol: int
    dgpo: str
    reward: str
    required_metadata: list[str]
    max_images: Size
    max_bytes: Size


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


def unpack_images(images: Raw | Png, max_pixels: int) -> Tensor:
    """(n, 3, H, W) fp32 in [0, 1]; H * W is at most max_pixels. Raises BadImages."""
    if isinstance(images, Png):
        return _same_size([_read_png(file, i, max_pixels) for i, file in enumerate(images.files)])
    expected = 4 * math.prod(images.shape)
    _check_size(images.shape[2], images.shape[3], max_pixels, None)
    if len(images.data) != expected:
        raise BadImages(f"images of shape {images.shape} are {expected} bytes of fp32; got {len(images.data)}")
    values = torch.from_numpy(np.frombuffer(images.data, "<f4").astype(np.float32)).view(images.shape)
    wrong = (~((values >= 0) & (values <= 1)).flatten(1).all(1)).nonzero()
    if len(wrong):
        raise BadImages("pixels must be finite and in [0, 1]", int(wrong[0]))
    return values


def _read_png(file: bytes, index: int, max_pixels: int) -> Tensor:
    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as picture:
            _check_size(picture.height, picture.width, max_pixels, index)  # before anything is decompressed
            if picture.mode != "RGB":
                raise BadImages(f"the PNG has mode {picture.mode}; it must be 8-bit RGB", index)
            values = np.array(picture)
    except BadImages:
        raise
    except Exception as error:  # a broken file fails in as many ways as there are files
        raise BadImages(f"the file is no PNG that can be read ({error})", index) from None
    return torch.from_numpy(values).permute(2, 0, 1) / 255


def _check_size(height: int, width: int, max_pixels: int, index: int | None) -> None:
    if height * width > max_pixels:
        raise BadImages(f"an image of {width}x{height} pixels has more than {max_pixels}", index)


def _same_size(images: list[Tensor]) -> Tensor:
    odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None or not images:
        raise BadImages("the images of a request must be at least one, all of one size", odd)
    return torch.stack(images)
