"""Rewards of the shapes world and its two held-out metrics, called as rewards. The rules are in worlds/shapes.

All of them share one detection of a batch of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.base import group_reward, reads_side, requires, shares
from dgpo.rewards.builtin.groups import for_each
from dgpo.rewards.rows import checks_rows
from dgpo.worlds.common.ground import IMAGE_SIZE
from dgpo.worlds.shapes import metrics
from dgpo.worlds.shapes.detector import Picture, detect
from dgpo.worlds.shapes.judge import credit, follows, require_judgeable
from dgpo.worlds.shapes.vocabulary import MAX_OBJECTS


def _judgeable(prompt: str, metadata: Mapping[str, Any]) -> None:
    require_judgeable(metadata["include"])


def _drawable(prompt: str, metadata: Mapping[str, Any]) -> None:
    _judgeable(prompt, metadata)
    asked = sum(entry.get("count", 1) for entry in metadata["include"])
    if asked > MAX_OBJECTS:
        raise UserError(f"the prompt {prompt!r} asks for {asked} objects; scenes of this world have {MAX_OBJECTS}")


@checks_rows(_judgeable)
@requires("include")
@reads_side(IMAGE_SIZE)
@shares(detect)
def shapes(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], *, seen: list[Picture]) -> list[float]:
    """Dense: partial credit in [0, 1] by judge.credit; extra and unrecognisable objects cost. (B, 3, 64, 64) -> B."""
    return [credit(picture.objects, row["include"]) for picture, row in zip(seen, metadata)]


@checks_rows(_judgeable)
@requires("include")
@reads_side(IMAGE_SIZE)
@shares(detect)
def shapes_strict(
    images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], *, seen: list[Picture]
) -> list[float]:
    """1 where the picture holds exactly what is asked for, else 0: where the dense reward is 1. (B, 3, 64, 64) -> B."""
    return [float(follows(picture.objects, row["include"])) for picture, row in zip(seen, metadata)]


@reads_side(IMAGE_SIZE)
@shares(detect)
def crispness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], *, seen: list[Picture]) -> Tensor:
    """How near the pictures are to clean renders. (B, 3, 64, 64) -> (B,) in [0, 1]."""
    return metrics.crispness(images, seen)


@checks_rows(_drawable)
@group_reward
@requires("include")
@reads_side(IMAGE_SIZE)
@shares(detect)
def diversity(
    images: Tensor,
    prompts: list[str],
    metadata: list[dict[str, Any]],
    group_index: Tensor,
    *,
    seen: list[Picture],
) -> Tensor:
    """The diversity of all pictures of an image's prompt, about 1 for independent scenes. (B, 3, 64, 64) -> (B,).

    A prompt with fewer than two right pictures cannot be measured.
    """
    return for_each(metrics.diversity(seen, group_index, metadata), group_index)
