"""Scenes, pictures of them and ways to spoil pictures, for the tests of the shapes world."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad

from dgpo.core.seeds import generator
from dgpo.worlds.shapes.detector import Picture
from dgpo.worlds.shapes.prompts import load
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import Scenes, draw, requests
from dgpo.worlds.shapes.vocabulary import COLORS, MAX_OBJECTS, SHAPES


def drawn(count: int, key: int = 0) -> tuple[list, Scenes, Tensor]:
    """`count` prompts over all kinds and both splits, a scene for each, its picture (count, 3, 64, 64)."""
    pool = load("train") + load("unseen")
    rows = torch.randperm(len(pool), generator=generator(key, "test/rows"))[:count].tolist()
    prompts = [pool[row] for row in rows]
    scenes = draw(requests(prompts), generator(key, "test/scenes"))
    return prompts, scenes, render(scenes)


def scene(*objects: tuple[str, str, float, float, float], tint: int = 0) -> Scenes:
    """One scene of (shape, color, x, y, radius)."""
    shape = [SHAPES.index(o[0]) for o in objects]
    empty = max(MAX_OBJECTS - len(objects), 0)
    return Scenes(
        shape=torch.tensor([shape + [-1] * empty]),
        color=torch.tensor([[list(COLORS).index(o[1]) for o in objects] + [0] * empty]),
        center=torch.tensor([[(o[2], o[3]) for o in objects] + [(0.0, 0.0)] * empty]),
        radius=torch.tensor([[o[4] for o in objects] + [1.0] * empty]),
        tint=torch.tensor([tint]),
    )


def picture(*objects: tuple[str, str, float, float, float], tint: int = 0) -> Tensor:
    """(1, 3, 64, 64) of (shape, color, x, y, radius); later ones are drawn over earlier ones."""
    return render(scene(*objects, tint=tint))


def noisy(images: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(images.shape, generator=generator(0, "test/noise"))
    return (images + sigma * noise).clamp(0, 1)


def blurred(images: Tensor, sigma: float) -> Tensor:
    axis = torch.arange(-4, 5).float()
    kernel = torch.exp(-axis.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    wide = pad(images, (4, 4, 4, 4), mode="replicate")
    return conv2d(conv2d(wide, kernel, groups=3), kernel.mT, groups=3)


def washed(images: Tensor, contrast: float) -> Tensor:
    return 0.5 + contrast * (images - 0.5)


def ragged(images: Tensor, pixels: float) -> Tensor:
    """Moves every place by a smooth random offset of that many pixels."""
    offset = torch.randn(len(images), 2, 22, 22, generator=generator(0, "test/ragged")) * pixels / 32
    axis = torch.linspace(-1, 1, 64)
    place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    offset = interpolate(offset, size=64, mode="bilinear").permute(0, 2, 3, 1)
    return grid_sample(images, place + offset, padding_mode="border", align_corners=True)


def is_right(seen: Picture, scenes: Scenes, row: int) -> bool:
    """Whether all objects of a scene, and nothing else, are seen: shape, colour, centre within one pixel."""
    left = list(seen.objects)
    for place in (scenes.shape[row] >= 0).nonzero()[:, 0].tolist():
        names = SHAPES[scenes.shape[row, place]], list(COLORS)[scenes.color[row, place]]
        center = scenes.center[row, place]
        fits = [o for o in left if (o.shape, o.color) == names and (torch.tensor(o.center) - center).norm() < 1]
        if not fits:
            return False
        left.remove(fits[0])
    return not left
