"""Images as CLIP wants them: shorter side resized by antialiased bicubic, centre cropped, normalised; all on tensors.

The published image processors work on 8-bit pictures through Pillow. So images are rounded to 8 bits first, and after
the horizontal and the vertical pass of the resize, as Pillow does. What is left of a difference is Pillow's fixed-point
arithmetic: at most two of 255 levels, in less than one value of a hundred. A score is therefore that of the picture as
it would be saved in a PNG file.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo.errors import UserError
from dgpo.utils.pictures import levels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BICUBIC = 3  # Pillow's number


class Preprocess(NamedTuple):
    """size: what the shorter side becomes; crop: the square that is cut out; both in pixels."""

    size: int = 224
    crop: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> (B, 3, crop, crop) float, normalised, on the same device."""
        images = resize(eight_bit(images), self.size)
        height, width = images.shape[2:]
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        images = images[:, :, top : top + self.crop, left : left + self.crop]
        mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (self.mean, self.std))
        return (images - mean) / std


def eight_bit(images: Tensor) -> Tensor:
    """Rounded to the 256 levels that a picture file holds, still float in [0, 1]."""
    return levels(images) / 255


def resize(images: Tensor, shorter: int) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same with the shorter side `shorter`, rounded to 8 bits; the longer is floored."""
    height, width = images.shape[2:]
    if min(height, width) == shorter:
        return images
    new = (int(shorter * height / min(height, width)), int(shorter * width / min(height, width)))
    for shape in ((height, new[1]), new):
        images = eight_bit(F.interpolate(images, shape, mode="bicubic", antialias=True))
    return images


def published(processor: Any, name: str) -> Preprocess:
    """The preprocessing that a transformers image processor of the CLIP kind describes; `name` is for errors."""
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    square = crop.get("height") == crop.get("width")
    whole = processor.do_resize and processor.do_center_crop and processor.do_rescale and processor.do_normalize
    if not (whole and square and set(size) == {"shortest_edge"} and int(processor.resample) == _BICUBIC):
        raise UserError(
            f"the image processor of {name} is not of CLIP's kind (shorter side by bicubic, square centre crop, "
            f"normalise): it has size {size}, crop {crop}, resample {processor.resample}. Give a `processor` that is"
        )
    return Preprocess(size["shortest_edge"], crop["height"], tuple(processor.image_mean), tuple(processor.image_std))
