"""Objects as masks: Mask2Former or MaskFormer trained on COCO instances, treated as GenEval treats it.

GenEval's detector is MMDetection's Mask2Former with a Swin-S backbone. The default here is the same network with the
weights of the paper's authors (Cheng et al. 2022, arXiv 2112.01527; same data and schedule, another run), so that
scores are near GenEval's and not equal. What surrounds the network is GenEval's:

- pictures are scaled to a short side of 800 pixels, at most 1333 the long one, normalised by ImageNet's mean and
  deviation and padded to multiples of 32. transformers' own processor is not used: the settings published with the
  weights may name another size, and its instances are cut from masks of 384 by 384 pixels;
- a mask is where its logit, scaled back to the picture, is positive; a confidence is the class probability times the
  mean probability of the mask inside it; the 100 most probable pairs of query and class are looked at;
- a box is the tightest around its mask.

Deviation: pictures are scaled with antialiasing, as these weights were trained; MMDetection scales without. It makes no
difference to pictures that are smaller than 800 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dgpo.rewards.builtin.geneval.rules import THRESHOLD, Box, Detection

SIDES = (800, 1333)  # the short side of what the network sees, and the longest side allowed
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MULTIPLE = 32
MAX_INSTANCES = 100


class MaskDetector:
    """network: -> class_queries_logits (n, Q, C + 1), masks_queries_logits (n, Q, h, w). names: class -> word."""

    def __init__(self, network: Any, names: Mapping[int, str], sides: tuple[int, int] = SIDES) -> None:
        self._network, self._names, self._sides = network, names, sides
        self.labels = frozenset(names.values())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[list[Detection]]:
        inputs, geometry = prepare(images.to(self._network.device), self._sides)
        outputs = self._network(pixel_values=inputs.to(self._network.dtype))
        classes = finite(outputs.class_queries_logits, "detector")
        masks = finite(outputs.masks_queries_logits, "detector")
        return [instances(*pair, geometry, self._names) for pair in zip(classes, masks)]


class Geometry(NamedTuple):
    """(height, width) of the picture, of what the network sees of it, and of that with its padding."""

    picture: tuple[int, int]
    scaled: tuple[int, int]
    padded: tuple[int, int]


def prepare(images: Tensor, sides: tuple[int, int]) -> tuple[Tensor, Geometry]:
    """images (n, 3, H, W) uint8 -> what the network sees, (n, 3, h, w) float, padded at the right and the bottom."""
    height, width = images.shape[-2:]
    scale = min(sides[0] / min(height, width), sides[1] / max(height, width))
    scaled = int(height * scale + 0.5), int(width * scale + 0.5)
    bottom, right = (-side % MULTIPLE for side in scaled)
    pixels = interpolate(images.float() / 255, scaled, mode="bilinear", align_corners=False, antialias=True)
    mean, deviation = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, DEVIATION))
    padded = pad((pixels - mean) / deviation, (0, right, 0, bottom))
    return padded, Geometry((height, width), scaled, (scaled[0] + bottom, scaled[1] + right))


def instances(classes: Tensor, masks: Tensor, geometry: Geometry, names: Mapping[int, str]) -> list[Detection]:
    """classes (Q, C + 1) logits, "no object" last; masks (Q, h, w) logits -> detections above THRESHOLD."""
    probabilities = classes.softmax(-1)[:, :-1]
    best, place = probabilities.flatten().topk(min(MAX_INSTANCES, probabilities.numel()))
    found = []
    for probability, index in zip(best.tolist(), place.tolist()):
        if probability <= THRESHOLD:  # a confidence is at most its class probability
            break
        query, label = divmod(index, probabilities.shape[1])
        logits = _unscaled(masks[query], geometry)
        mask = logits > 0
        score = probability * float(logits.sigmoid()[mask].sum() / (mask.sum() + 1e-6))
        if score > THRESHOLD:
            found.append(Detection(names[label], score, _around(mask), mask.cpu()))
    return found


def finite(values: Tensor, what: str) -> Tensor:
    """The values in fp32. What is not finite would pass for "nothing found" or for the first colour."""
    if not values.isfinite().all():
        raise RuntimeError(f"the {what} of the GenEval reward returned values that are not finite; use dtype='float32'")
    return values.float()


def _unscaled(logits: Tensor, geometry: Geometry) -> Tensor:
    """(h, w) -> (H, W) of the picture: to the padded size, without the padding, to the picture's."""
    padded = interpolate(logits[None, None], geometry.padded, mode="bilinear", align_corners=False)
    scaled = padded[..., : geometry.scaled[0], : geometry.scaled[1]]
    return interpolate(scaled, geometry.picture, mode="bilinear", align_corners=False)[0, 0]


def _around(mask: Tensor) -> Box:
    """Pixel edges around a mask that is not empty."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
