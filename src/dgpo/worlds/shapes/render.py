"""The renderer: every shape is a signed distance to its outline, drawn with one pixel of antialiasing.

A polygon that is convex is where all its half-planes hold, so its distance is the largest of them. A five-pointed star
is where at least four of its five do, so its distance is the second largest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgpo.worlds.common.ground import IMAGE_SIZE, TINTS, palette
from dgpo.worlds.shapes.scenes import Scenes
from dgpo.worlds.shapes.vocabulary import COLORS, SHAPES


def render(scenes: Scenes, size: int = IMAGE_SIZE) -> Tensor:
    """Scenes -> images (N, 3, size, size) fp32 in [0, 1]."""
    device = scenes.center.device
    colors = palette(COLORS.values(), device)
    images = palette(TINTS, device)[scenes.tint][:, :, None, None].expand(-1, -1, size, size)
    for place in range(scenes.shape.shape[1]):
        cover = coverage(scenes.shape[:, place], scenes.center[:, place], scenes.radius[:, place], size)
        paint = colors[scenes.color[:, place]][:, :, None, None]
        images = torch.lerp(images, paint.expand_as(images), cover[:, None].expand_as(images))
    return images


def coverage(shape: Tensor, center: Tensor, radius: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """How much of each pixel one object covers: (N, size, size) in [0, 1]; 0 where shape (N,) is -1."""
    axis = torch.arange(size, device=center.device) + 0.5
    x = axis[None, None, :] - center[:, 0, None, None]
    y = axis[None, :, None] - center[:, 1, None, None]
    distance = torch.zeros(len(shape), size, size, device=center.device)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero()[:, 0]
        distance[rows] = _DISTANCES[name](x[rows], y[rows], radius[rows, None, None])
    return (0.5 - distance).clamp(0, 1) * (shape >= 0)[:, None, None]


def _half_planes(x: Tensor, y: Tensor, reach: Tensor, angles: list[float]) -> Tensor:
    return torch.stack([x * math.cos(a) + y * math.sin(a) - reach for a in angles])


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.92 * radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.76 * radius


def _diamond(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x.abs() + y.abs() - radius) / math.sqrt(2)


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _half_planes(x, y, radius / 2, [math.pi / 2, math.pi * 7 / 6, math.pi * 11 / 6]).amax(0)


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - 0.92 * radius, short - 0.3 * radius)


def _star(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    angles = [-math.pi / 2 + 2 * math.pi * k / 5 for k in range(5)]
    sides = _half_planes(x, y, 0.36 * radius, angles)
    return torch.maximum(sides.topk(2, dim=0).values[1], torch.hypot(x, y) - radius)


_DISTANCES = dict(zip(SHAPES, (_circle, _square, _triangle, _diamond, _cross, _star)))
