"""Rewards of the shapes world and its two held-out metrics, called as rewards. The rules are in worlds/shapes.

All of them look at one detection, which the detector remembers for as long as the tensor of images lives.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dgpo.rewards.base import group_reward, requires
from dgpo.rewards.groups import for_each
from dgpo.worlds.shapes import metrics
from dgpo.worlds.shapes.detector import detect
from dgpo.worlds.shapes.judge import credit, follows


@requires("include")
def shapes(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    """Dense: partial credit in [0, 1] by judge.credit; extra and unrecognisable objects cost. (B, 3, 64, 64) -> B."""
    return [credit(picture.objects, row["include"]) for picture, row in zip(detect(images), metadata)]


@requires("include")
def shapes_strict(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    """1 where the picture holds exactly what is asked for, else 0: where the dense reward is 1. (B, 3, 64, 64) -> B."""
    return [float(follows(picture.objects, row["include"])) for picture, row in zip(detect(images), metadata)]


def crispness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """How near the pictures are to clean renders. (B, 3, 64, 64) -> (B,) in [0, 1]."""
    return metrics.crispness(images)


@group_reward
@requires("include")
def diversity(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], group_index: Tensor) -> Tensor:
    """The diversity of all pictures of an image's prompt, about 1 for independent scenes. (B, 3, 64, 64) -> (B,).

    A prompt with fewer than two right pictures cannot be measured.
    """
    return for_each(metrics.diversity(images, group_index, metadata), group_index)
