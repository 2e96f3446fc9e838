"""The objects of a picture, seen by a COCO detector that transformers loads: one that draws masks (masks.py) or boxes.

GenEval's is the first sort. Detectors that draw boxes (DETR, YOLOS, RT-DETR, ...) go through the image processor that
belongs to them; colours are then read from the whole box. Neither needs torchvision.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.builtin.geneval.masks import SIDES, MaskDetector, finite
from dgpo.rewards.builtin.geneval.rules import THRESHOLD, Detection
from dgpo.rewards.builtin.geneval.vocabulary import class_name
from dgpo.rewards.builtin.weights import from_pretrained, place

MASK_MODELS = {
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "maskformer": "MaskFormerForInstanceSegmentation",
}


class Detector(Protocol):
    """images (n, 3, H, W) uint8 on the CPU -> the detections of each, confidence above 0.3, masks on the CPU."""

    labels: frozenset[str]  # in GenEval's names

    def __call__(self, images: Tensor, /) -> list[list[Detection]]: ...


def load_detector(
    name: str, device: str | torch.device | None, dtype: str | torch.dtype, sides: tuple[int, int] = SIDES
) -> Detector:
    """name: a model id of the hub or a folder. sides: what masks.SIDES tells, for networks that draw masks."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES as BOX_MODELS

    config = from_pretrained(transformers.AutoConfig, name, "geneval")
    kind = MASK_MODELS.get(config.model_type) or BOX_MODELS.get(config.model_type)
    if kind is None:
        raise UserError(
            f"the GenEval detector {name!r} is a {config.model_type} model; give a {' or '.join(MASK_MODELS)} model "
            "trained on COCO instances, or one that transformers loads for object detection"
        )
    network = place(from_pretrained(getattr(transformers, kind), name, "geneval"), device, dtype)
    names = _names(config)
    if config.model_type in MASK_MODELS:
        return MaskDetector(network, names, sides)
    return BoxDetector(network, names, from_pretrained(transformers.AutoImageProcessor, name, "geneval"))


def known_labels(name: str) -> frozenset[str]:
    """What the detector of this name can see, in GenEval's names; read from its configuration alone."""
    from transformers import AutoConfig

    return frozenset(_names(from_pretrained(AutoConfig, name, "geneval")).values())


def _names(config: Any) -> dict[int, str]:
    return {int(index): class_name(label) for index, label in config.id2label.items()}


class BoxDetector:
    """network: -> logits (n, Q, C), pred_boxes (n, Q, 4). names: class -> word."""

    def __init__(self, network: Any, names: dict[int, str], processor: Any) -> None:
        self._network, self._names, self._processor = network, names, processor
        self.labels = frozenset(names.values())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[list[Detection]]:
        size = (images.shape[-2], images.shape[-1])
        pictures = list(images.permute(0, 2, 3, 1).numpy())
        inputs = self._processor(images=pictures, return_tensors="pt", input_data_format="channels_last")
        outputs = self._network(pixel_values=inputs["pixel_values"].to(self._network.device, self._network.dtype))
        outputs.logits, outputs.pred_boxes = (finite(outputs[key], "detector") for key in ("logits", "pred_boxes"))
        found = self._processor.post_process_object_detection(outputs, THRESHOLD, [size] * len(images))
        return [self._detections(one, size) for one in found]

    def _detections(self, found: dict[str, Tensor], size: tuple[int, int]) -> list[Detection]:
        """Boxes end where the picture ends."""
        limit = torch.tensor([size[1], size[0], size[1], size[0]])
        boxes = found["boxes"].cpu().clamp(min=0).minimum(limit).tolist()
        triples = zip(found["labels"].tolist(), found["scores"].tolist(), boxes)
        return [Detection(self._names[label], score, tuple(box)) for label, score, box in triples]
