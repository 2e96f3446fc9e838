"""Held-out metrics of the shapes world, which never train: they show when a reward is earned by spoiling the pictures.

`crispness` draws again what the detector found and compares pixels, so it falls with blur, noise, ragged outlines,
washed colours and blobs that are nothing. `diversity` compares the pictures of one prompt that follow it; those that
fail are left out, so that failing in many ways earns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from dgpo.core import seeds
from dgpo.worlds.common.ground import TINTS, palette
from dgpo.worlds.common.likeness import likeness
from dgpo.worlds.shapes.detector import Picture
from dgpo.worlds.shapes.judge import follows
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import ANY, Requests, Scenes, draw, requests
from dgpo.worlds.shapes.vocabulary import COLORS, MAX_OBJECTS, SHAPES

INDEPENDENT = 256  # scenes that set diversity's unit


@torch.no_grad()
def crispness(images: Tensor, pictures: Sequence[Picture]) -> Tensor:
    """The likeness of a picture and its objects drawn again: 1 for a clean render, 0 for a picture without any object.

    images: (B, 3, 64, 64) float in [0, 1]; pictures: what `detect` sees in them; returns (B,) in [0, 1].
    """
    scenes = scenes_of(pictures)
    tint = palette(TINTS)[scenes.tint]
    return likeness(images.float().cpu(), render(scenes), tint) * (scenes.shape >= 0).any(1)


@torch.no_grad()
def diversity(pictures: Sequence[Picture], group_index: Tensor, metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """How different the pictures of each prompt are, in units of scenes drawn independently for it.

    pictures: B of `detect`; group_index: (B,) int64; metadata: B dicts with `include`, alike in a group.
    Returns (num_groups,): the mean over layout, sizes, tint and, where the prompt names none, colours of the mean
    distance between two pictures that follow the prompt: about 1 for clean independent scenes, 0 for copies, NaN
    where there are no two such pictures.
    """
    group = group_index.tolist()
    right = [follows(picture.objects, row["include"]) for picture, row in zip(pictures, metadata)]
    found = torch.full((max(group) + 1,), torch.nan)
    for index in set(group):
        rows = [i for i, g in enumerate(group) if g == index]
        kept = [pictures[i] for i in rows if right[i]]
        if len(kept) > 1:
            found[index] = _diversity(scenes_of(kept), dict(metadata[rows[0]]))
    return found


def _diversity(scenes: Scenes, prompt: dict[str, Any]) -> float:
    wanted = requests([prompt])
    shapes = tuple(wanted.shape[0].tolist())
    unit = _unit(tuple(shapes.index(s) if s >= 0 else -1 for s in shapes), int(wanted.relation))
    parts = _distances(scenes) / unit
    named = any("color" in entry for entry in prompt["include"])
    return float(parts[:3].mean() if named else parts.mean())


@cache
def _unit(pattern: tuple[int, ...], relation: int) -> Tensor:
    """Distances between independent scenes. Only which objects are of one shape, and their relation, matter."""
    shape = torch.tensor([pattern]).expand(INDEPENDENT, -1)
    wanted = Requests(shape, torch.full_like(shape, ANY), torch.full((INDEPENDENT,), relation))
    return _distances(draw(wanted, seeds.generator(0, "shapes/diversity")))


def _distances(scenes: Scenes) -> Tensor:
    """(4,) mean over pairs of different scenes of: distance of centres, of radii, other tint, share of other colours.

    All n scenes hold the same shapes in the same places of the tensors; like objects are matched so that centres are
    nearest.
    """
    shape, count = scenes.shape[0], int((scenes.shape[0] >= 0).sum())
    like = [p for p in permutations(range(count)) if all(shape[i] == shape[j] for i, j in enumerate(p))]
    center, radius, color = (part[:, :count] for part in (scenes.center, scenes.radius, scenes.color))
    apart = (center[:, None, None] - center[None][:, :, like]).norm(dim=-1).mean(-1)  # (n, n, permutations)
    layout, best = apart.min(-1)
    match = torch.tensor(like)[best]  # (n, n, count), the other scene's place for each of one scene's

    def other(part: Tensor) -> Tensor:
        return part.expand(len(part), -1, -1).gather(2, match)

    sizes = (radius[:, None] - other(radius)).abs().mean(-1)
    colors = (color[:, None] != other(color)).float().mean(-1)
    tints = (scenes.tint[:, None] != scenes.tint).float()
    pairs = len(radius) * (len(radius) - 1)
    return torch.stack([layout, sizes, tints, colors]).sum((1, 2)) / pairs


def scenes_of(pictures: Sequence[Picture]) -> Scenes:
    """The known objects of pictures, in the order of SHAPES."""
    known = [sorted((o for o in p.objects if o.shape), key=lambda o: SHAPES.index(o.shape or "")) for p in pictures]
    size = len(pictures), max(MAX_OBJECTS, *(len(objects) for objects in known))
    scenes = Scenes(
        shape=torch.full(size, -1),
        color=torch.zeros(size, dtype=torch.int64),
        center=torch.zeros(*size, 2),
        radius=torch.ones(size),
        tint=torch.tensor([picture.tint for picture in pictures]),
    )
    for row, objects in enumerate(known):
        for place, found in enumerate(objects):
            scenes.shape[row, place] = SHAPES.index(found.shape or "")
            scenes.color[row, place] = list(COLORS).index(found.color or "")
            scenes.center[row, place] = torch.tensor(found.center)
            scenes.radius[row, place] = found.radius
    return scenes
