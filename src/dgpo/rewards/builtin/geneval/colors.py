"""The colour of an object by CLIP, zero-shot, as GenEval asks for it (Ghosh et al. 2023).

The object is cut out along its mask, laid on grey (#999), cropped to its box and compared with three sentences for each
of ten colours, in which the object is called by its class. The mean of a colour's three normalised text embeddings is
the colour's direction; the nearest one wins. CLIP ViT-L/14 of OpenAI, as in GenEval, through transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from dgpo.rewards.builtin.geneval.masks import finite
from dgpo.rewards.builtin.geneval.rules import Box
from dgpo.rewards.builtin.geneval.vocabulary import COLORS
from dgpo.rewards.builtin.weights import from_pretrained, place

TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GREY = 0x99


class ColorClassifier:
    """name: a CLIP model of the hub or a folder, with its tokenizer and image processor."""

    def __init__(self, name: str, device: str | torch.device | None, dtype: str | torch.dtype) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self._network: Any = place(from_pretrained(CLIPModel, name, "geneval"), device, dtype)
        self._tokenizer = from_pretrained(AutoTokenizer, name, "geneval")
        self._processor = from_pretrained(AutoImageProcessor, name, "geneval")
        self._directions: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, crops: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
        """crops: one object each; names: their classes -> their colours."""
        # Said, because a crop of one or three rows would pass for one with its channels first.
        pictures = self._processor(images=list(crops), return_tensors="pt", input_data_format="channels_last")
        pixels = pictures["pixel_values"]
        features = self._network.get_image_features(pixel_values=pixels.to(self._network.device, self._network.dtype))
        directions = torch.stack([self._colors_of(name) for name in names])  # (n, 10, d)
        nearest = torch.einsum("nd,ncd->nc", _embedding(features), directions).argmax(1)
        return [COLORS[index] for index in nearest.tolist()]

    def _colors_of(self, name: str) -> Tensor:
        """(10, d) unit vectors."""
        if name not in self._directions:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            tokens = self._tokenizer(texts, padding=True, return_tensors="pt").to(self._network.device)
            features = _embedding(self._network.get_text_features(**tokens))
            self._directions[name] = normalize(features.view(len(COLORS), len(TEMPLATES), -1).mean(1), dim=-1)
        return self._directions[name]


def crop(image: Tensor, box: Box, mask: Tensor | None) -> Image.Image:
    """image (3, H, W) uint8, mask (H, W) bool -> the object on grey, cropped to its box; the box itself without a mask.

    A box is rounded to whole pixels and holds at least one.
    """
    if mask is not None:
        image = torch.where(mask, image, torch.full_like(image, GREY))
    height, width = image.shape[-2:]
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
    return Image.fromarray(image[:, top:bottom, left:right].permute(1, 2, 0).numpy())


def _embedding(features: Any) -> Tensor:
    """(n, d) unit vectors. CLIPModel returns a tensor in transformers 4, an output with `pooler_output` in 5."""
    features = features if isinstance(features, Tensor) else features.pooler_output
    return normalize(finite(features, "clip"), dim=-1)
