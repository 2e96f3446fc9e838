"""GenEval (Ghosh et al. 2023, arXiv 2310.11513) as a reward, in this process and without mmdetection.

A COCO detector finds the objects of a picture, CLIP tells the colours that a prompt asks for, and rules compare them
with the prompt's metadata, which is GenEval's (`tag`, `include`, `exclude`). Scores:

    geneval            the dense score that Flow-GRPO and DGPO train on: partial credit, at most 1
    geneval/strict     1 where exactly what is asked for is there, else 0: where the dense score is 1
    geneval/accuracy   1 where GenEval's evaluation says "correct", else 0: the benchmark's figure

Formulas and deviations: rules.py. Networks: detector.py, masks.py, colors.py. Prompts: prompts.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.builtin.geneval.colors import ColorClassifier, crop
from dgpo.rewards.builtin.geneval.detector import Detector, known_labels, load_detector
from dgpo.rewards.builtin.geneval.masks import SIDES
from dgpo.rewards.builtin.geneval.request import Request, read
from dgpo.rewards.builtin.geneval.rules import Objects, accuracy, dense, keep, strict
from dgpo.utils.pictures import to_bytes

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"


class GenEval:
    """The reward. Networks are loaded when first needed, the one for colours only if a prompt asks for a colour.

    detector, clip: a model id of the hub, a folder, or a callable as `Detector` and `ColorClassifier`. device: None is
    the GPU if there is one. batch_size: pictures the detector, and objects CLIP, looks at together. sides: see
    masks.SIDES. max_overlap: see rules.keep.
    """

    required_metadata = ("tag", "include")

    def __init__(
        self,
        detector: str | Path | Detector = DETECTOR,
        clip: str | Path | Any = CLIP,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 8,
        sides: tuple[int, int] = SIDES,
        max_overlap: float = 1.0,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} looks at no picture; give 1 or more")
        self._given, self._place, self._sides = (detector, clip), (device, dtype), sides
        self._batch_size, self._max_overlap = batch_size, max_overlap

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> dict[str, list[float]]:
        """images (B, 3, H, W) float in [0, 1] -> {"geneval", "strict", "accuracy"}, B numbers each."""
        requests = [read(row, self._labels) for row in metadata]
        pixels = to_bytes(images)  # GenEval reads pictures from PNG files
        detected = [objects for part in pixels.split(self._batch_size) for objects in self._detector(part)]
        kept = [keep(objects, request.tag, self._max_overlap) for objects, request in zip(detected, requests)]
        pairs = list(zip(self._colored(pixels, kept, requests), requests))
        rules = {"geneval": dense, "strict": strict, "accuracy": accuracy}
        return {name: [rule(*pair) for pair in pairs] for name, rule in rules.items()}

    def _colored(self, pixels: Tensor, kept: Sequence[Objects], requests: Sequence[Request]) -> Sequence[Objects]:
        """The same objects; those whose colour the rules will read have one."""
        asked = [
            (image, entry.label, place)
            for image, request in enumerate(requests)
            for entry in request.include
            if entry.color is not None
            for place in range(min(entry.count, len(kept[image].get(entry.label, []))))
        ]
        for start in range(0, len(asked), self._batch_size):
            batch = asked[start : start + self._batch_size]
            objects = [kept[image][label][place] for image, label, place in batch]
            crops = [crop(pixels[image], one.box, one.mask) for (image, _, _), one in zip(batch, objects)]
            for (image, label, place), color in zip(batch, self._colors(crops, [one.label for one in objects])):
                kept[image][label][place] = kept[image][label][place]._replace(color=color)
        return kept

    def check_row(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        """Refuse metadata that the rules cannot judge, or that asks for what the detector does not know."""
        read(metadata, self._labels)

    @cached_property
    def _labels(self) -> Collection[str]:
        """What the detector knows, without its weights."""
        given = self._given[0]
        return known_labels(str(given)) if isinstance(given, (str, Path)) else given.labels

    @cached_property
    def _detector(self) -> Detector:
        given = self._given[0]
        return load_detector(str(given), *self._place, self._sides) if isinstance(given, (str, Path)) else given

    @cached_property
    def _colors(self) -> Any:
        given = self._given[1]
        return ColorClassifier(str(given), *self._place) if isinstance(given, (str, Path)) else given
