"""Scenes: what stands where, as tensors, drawn at random from what a prompt asks for.

A scene has at most MAX_OBJECTS objects inside the frame whose circumscribed circles keep a gap, so that no two touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgpo.worlds.common.ground import IMAGE_SIZE, TINTS
from dgpo.worlds.shapes.vocabulary import COLORS, MAX_OBJECTS, RELATIONS, SHAPES

RADII = {1: (10.0, 15.0), 2: (9.5, 13.0), 3: (8.5, 10.5), 4: (8.0, 9.5)}  # pixels, by the number of objects
GAP, BORDER, CLEARANCE = (
    3.0,
    2.0,
    5.0,
)  # pixels: between objects, to the frame, by which a relation is unmistakable
ANY = -1


class Requests(NamedTuple):
    """What prompts ask for. N prompts, K = MAX_OBJECTS places for objects."""

    shape: Tensor  # (N, K) int64 index into SHAPES, -1 for no object
    color: Tensor  # (N, K) int64 index into COLORS, -1 for any
    relation: Tensor  # (N,) int64 index into RELATIONS: object 0 stands so to object 1; -1 for none

    def rows(self, index: Tensor) -> Requests:
        return Requests(*(part[index] for part in self))


class Scenes(NamedTuple):
    """N scenes of K = MAX_OBJECTS places; a place whose shape is -1 is empty."""

    shape: Tensor  # (N, K) int64 index into SHAPES, -1 for no object
    color: Tensor  # (N, K) int64 index into COLORS
    center: Tensor  # (N, K, 2) fp32 pixels (x, y)
    radius: Tensor  # (N, K) fp32 pixels, of the circumscribed circle
    tint: Tensor  # (N,) int64 index into TINTS


def requests(prompts: Sequence[dict[str, Any]]) -> Requests:
    """GenEval metadata -> tensors. In a position prompt the described object comes first."""
    shape = torch.full((len(prompts), MAX_OBJECTS), ANY)
    color = torch.full((len(prompts), MAX_OBJECTS), ANY)
    relation = torch.full((len(prompts),), ANY)
    names = list(COLORS)
    for row, prompt in enumerate(prompts):
        described = sorted(prompt["include"], key=lambda o: "position" not in o)
        objects = [o for o in described for _ in range(o.get("count", 1))]
        for place, entry in enumerate(objects):
            shape[row, place] = SHAPES.index(entry["class"])
            color[row, place] = names.index(entry["color"]) if "color" in entry else ANY
        if "position" in objects[0]:
            relation[row] = RELATIONS.index(objects[0]["position"][0])
    return Requests(shape, color, relation)


def draw(wanted: Requests, generator: torch.Generator) -> Scenes:
    """One random scene for every request. Runs on the generator's device."""
    device = generator.device
    wanted = Requests(*(part.to(device) for part in wanted))
    present = wanted.shape >= 0
    count, radius = len(present), _radii(present, generator)
    any_color = torch.randint(len(COLORS), present.shape, generator=generator, device=device)
    return Scenes(
        shape=wanted.shape,
        color=torch.where(wanted.color >= 0, wanted.color, any_color),
        center=_centers(present, radius, wanted.relation, generator),
        radius=radius,
        tint=torch.randint(len(TINTS), (count,), generator=generator, device=device),
    )


def relation_holds(offset: Tensor, relation: Tensor, clearance: float = 0.0) -> Tensor:
    """Whether an object at `offset` (..., 2) pixels from another stands in `relation` (...) to it.

    The named axis must be the longer one: of two objects exactly one relation holds.
    """
    axis = torch.where(relation[..., None] < 2, offset, offset.flip(-1))
    sign = torch.where(relation % 2 == 0, -1.0, 1.0)
    return sign * axis[..., 0] > axis[..., 1].abs() + clearance


def _radii(present: Tensor, generator: torch.Generator) -> Tensor:
    low, high = torch.tensor([(0.0, 0.0), *RADII.values()], device=present.device)[present.sum(1)].T
    share = torch.rand(present.shape, generator=generator, device=present.device)
    return low[:, None] + share * (high - low)[:, None]


def _centers(present: Tensor, radius: Tensor, relation: Tensor, generator: torch.Generator) -> Tensor:
    """Rejection sampling: propose a whole layout for every scene that has none yet, until all have one."""
    center = torch.zeros(*present.shape, 2, device=present.device)
    open_rows = torch.arange(len(present), device=present.device)
    while len(open_rows):
        size = radius[open_rows, :, None]
        share = torch.rand(*size.shape[:2], 2, generator=generator, device=present.device)
        proposal = size + BORDER + share * (IMAGE_SIZE - 2 * (size + BORDER))
        center[open_rows] = proposal
        apart = _apart(proposal, radius[open_rows], present[open_rows])
        right = relation[open_rows] < 0
        right |= relation_holds(proposal[:, 0] - proposal[:, 1], relation[open_rows], CLEARANCE)
        open_rows = open_rows[~(apart & right)]
    return center


def _apart(center: Tensor, radius: Tensor, present: Tensor) -> Tensor:
    distance = torch.cdist(center, center)
    need = radius[:, :, None] + radius[:, None, :] + GAP
    pair = present[:, :, None] & present[:, None, :] & ~torch.eye(MAX_OBJECTS, dtype=torch.bool, device=center.device)
    return ((distance >= need) | ~pair).flatten(1).all(1)
