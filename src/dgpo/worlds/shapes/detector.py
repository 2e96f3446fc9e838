"""The detector: what stands in a picture, read back from its pixels. It renders guesses and compares.

1. The tint is the one nearest to the mean of the pale pixels.
2. A pixel takes the colour whose direction from the tint is nearest to its own, if it is a third of the way there.
3. A blob is a 4-connected set of pixels of one colour around at least one 3x3 block; touching objects of different
   colours are thereby apart. What has no such block (specks, hairlines, the seam between two colours) is ignored.
4. In every shape of the world the centroid is the centre and the area is a constant times the radius squared. So a
   blob's own centroid and area place and size one template of each shape, without a search. The score is intersection
   over union, on coverages sharpened about a half so that slight blur costs little. A slim shape loses more of it to
   the same roughness than a stout one, so shapes compete by (1 - score) * area / perimeter, the distance of outlines.
5. A blob is unknown if that distance is over MAX_ROUGHNESS of the radius for every shape, if its radius is outside
   RADIUS_RANGE or if its colour is off.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from dgpo.worlds.common.ground import TINTS, nearest_tint, palette, require_size
from dgpo.worlds.shapes.render import coverage
from dgpo.worlds.shapes.vocabulary import COLORS, SHAPES

MAX_ROUGHNESS = 0.06  # a circle may score .87, a star .72; a 4:3 ellipse or a square turned by 22 degrees has .08
RADIUS_RANGE = (6.0, 17.0)  # pixels; scenes have 8 to 15
MAX_COLOR_ERROR = 0.2  # RGB distance of a blob's mean colour from its palette colour
THIRD = 0.35
WINDOW, SHARPEN, CHUNK = 36, 3.0, 64  # pixels around a blob; contrast about one half; images at once

_PALETTE, _TINTS = palette(COLORS.values()), palette(TINTS)
_PLANE = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))], dtype=bool)


class Found(NamedTuple):
    """One object. `shape` and `color` are None for a blob that is no object of this world."""

    shape: str | None
    color: str | None
    center: tuple[float, float]  # pixels (x, y)
    radius: float  # pixels, of the circumscribed circle of the best shape
    score: float  # in [0, 1], match with the best shape


class Picture(NamedTuple):
    """All that the detector sees in one image."""

    tint: int  # index into TINTS
    objects: tuple[Found, ...]


class _Blobs(NamedTuple):
    """N blobs in B images."""

    ids: Tensor  # (B, H, W) int64 index of the blob, -1 for none
    solid: Tensor  # (B, H, W) bool, in the middle of a 3x3 block of its blob
    image: Tensor  # (N,) int64
    color: Tensor  # (N,) int64 index into COLORS


@torch.no_grad()
def detect(images: Tensor) -> list[Picture]:
    """(B, 3, 64, 64) float in [0, 1] -> B pictures."""
    require_size(images, "shapes")
    images = images.detach().float().cpu()
    return [picture for chunk in images.split(CHUNK) for picture in _detect_chunk(chunk)]


def _detect_chunk(images: Tensor) -> list[Picture]:
    tint = nearest_tint(images)
    away = (images - _TINTS[tint][:, :, None, None]).permute(0, 2, 3, 1)  # (B, H, W, 3)
    blobs = _blobs(_color_map(away, tint))
    found: list[list[Found]] = [[] for _ in images]
    if len(blobs.image):
        for image, one in zip(
            blobs.image.tolist(), _fit(blobs, away, _PALETTE[blobs.color] - _TINTS[tint[blobs.image]])
        ):
            found[image].append(one)
    return [Picture(index, tuple(objects)) for index, objects in zip(tint.tolist(), found)]


def _color_map(away: Tensor, tint: Tensor) -> Tensor:
    """(B, H, W, 3) differences from the tint (B,) -> (B, H, W) int64 index into COLORS, -1 for background."""
    toward = _PALETTE[None] - _TINTS[:, None]  # (tints, colors, 3)
    length = toward.norm(dim=-1)
    where = (away.abs().amax(-1) > THIRD / 2).nonzero(as_tuple=True)
    reach, color = torch.einsum("mc,mkc->mk", away[where], (toward / length[..., None])[tint[where[0]]]).max(1)
    colors = torch.full(away.shape[:3], -1)
    colors[where] = torch.where(reach > THIRD * length[tint[where[0]], color], color, -1)
    return colors


def _blobs(colors: Tensor) -> _Blobs:
    """Connected components of all images and colours in one call: pixels at even places, links between them at odd."""
    c = colors.numpy()
    count, height, width = c.shape
    grid = np.zeros((count, 2 * height - 1, 2 * width - 1), dtype=bool)
    grid[:, ::2, ::2] = c >= 0
    grid[:, ::2, 1::2] = (c[:, :, 1:] == c[:, :, :-1]) & (c[:, :, 1:] >= 0)
    grid[:, 1::2, ::2] = (c[:, 1:] == c[:, :-1]) & (c[:, 1:] >= 0)
    components = np.zeros(grid.shape, dtype=np.int64)
    ndimage.label(grid, structure=_PLANE, output=components)
    labels = torch.from_numpy(components[:, ::2, ::2])
    solid = _solid(labels)
    image, y, x = solid.nonzero(as_tuple=True)
    kept, ids = labels[image, y, x].unique(return_inverse=True)
    renumber = torch.full((int(labels.max()) + 1,), -1)
    renumber[kept] = torch.arange(len(kept))
    first = torch.zeros(len(kept), dtype=torch.int64).scatter_(0, ids, torch.arange(len(ids)))
    return _Blobs(renumber[labels], solid, image[first], colors[image, y, x][first])


def _solid(labels: Tensor) -> Tensor:
    """(B, H, W), 0 for none -> bool, whether the 3x3 pixels around are all of one label."""
    middle, row = labels[:, 1:-1, 1:-1], labels[:, :, 1:-1]
    even = (row == labels[:, :, :-2]) & (row == labels[:, :, 2:]) & (row > 0)
    inside = even[:, 1:-1] & even[:, :-2] & even[:, 2:] & (middle == row[:, :-2]) & (middle == row[:, 2:])
    return pad(inside, (1, 1, 1, 1))


def _fit(blobs: _Blobs, away: Tensor, toward: Tensor) -> list[Found]:
    """Match every blob with every shape. away (B, H, W, 3); toward (N, 3) is the blob's colour less the tint."""
    corner, window = _windows(blobs)
    cover, error = _cover(blobs, away, toward, window)
    axis = torch.arange(WINDOW) + 0.5
    area = cover.sum((1, 2))
    center = torch.stack([cover.sum(1) @ axis, cover.sum(2) @ axis], 1) / area[:, None]
    unit_area, unit_perimeter = _unit()
    radius = (area[:, None] / unit_area).sqrt()
    rows = torch.arange(len(SHAPES)).repeat(len(area)), center.repeat_interleave(len(SHAPES), 0), radius.flatten()
    templates = _sharpen(coverage(*rows, size=WINDOW)).unflatten(0, (-1, len(SHAPES)))  # (N, shapes, W, W)
    shared = torch.minimum(templates, _sharpen(cover)[:, None]).sum((2, 3))
    either = templates.sum((2, 3)) + _sharpen(cover).sum((1, 2))[:, None] - shared
    roughness, shape = ((1 - shared / either) * unit_area / unit_perimeter).min(1)
    score, radius = (part.gather(1, shape[:, None])[:, 0] for part in (shared / either, radius))
    known = (radius > RADIUS_RANGE[0]) & (radius < RADIUS_RANGE[1])
    known &= (roughness <= MAX_ROUGHNESS) & (error <= MAX_COLOR_ERROR)
    columns = known, shape, blobs.color, center + corner, radius, score
    return [_found(*row) for row in zip(*(column.tolist() for column in columns))]


def _windows(blobs: _Blobs) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Upper left corners (N, 2) fp32 pixels (x, y), and the index that cuts (N, W, W) windows out of padded maps."""
    image, y, x = (blobs.ids >= 0).nonzero(as_tuple=True)
    ids, count = blobs.ids[image, y, x], len(blobs.image)
    pixels = torch.bincount(ids, minlength=count)
    corner = torch.stack([torch.bincount(ids, axis.float(), count) / pixels for axis in (x, y)], 1).round().long()
    axis = torch.arange(WINDOW)
    columns, rows = (corner[:, :, None] + axis).unbind(1)
    return corner - WINDOW // 2, (blobs.image[:, None, None], rows[:, :, None], columns[:, None, :])


def _cover(blobs: _Blobs, away: Tensor, toward: Tensor, window: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """How far each pixel is from the tint to the blob's colour, in the blob and one pixel around it.

    Returns coverages (N, W, W) in [0, 1] and colour errors (N,), RGB distances of mean colours from the palette's.
    """
    half = (WINDOW // 2,) * 4
    ids = pad(blobs.ids, half, value=-2)[window]  # -2 outside the frame
    pixels = pad(away, (0, 0, *half))[window]  # (N, W, W, 3)
    mine = ids == torch.arange(len(ids))[:, None, None]
    near = max_pool2d(mine[:, None].float(), 3, 1, 1)[:, 0] > 0
    reach = torch.einsum("nhwc,nc->nhw", pixels, toward / toward.square().sum(1, keepdim=True)).clamp(0, 1)
    core = (mine & pad(blobs.solid, half)[window]).float()
    mean = torch.einsum("nhwc,nhw->nc", pixels, core) / core.sum((1, 2))[:, None].clamp(min=1)
    return reach * (mine | (near & (ids == -1))), (mean - toward).norm(dim=1)


def _sharpen(cover: Tensor) -> Tensor:
    return (0.5 + SHARPEN * (cover - 0.5)).clamp(0, 1)


@cache
def _unit() -> tuple[Tensor, Tensor]:
    """Areas and perimeters (shapes,) of shapes of radius 1, as the renderer draws them."""
    count, radius = len(SHAPES), 48.0
    cover = coverage(torch.arange(count), torch.full((count, 2), 64.0), torch.full((count,), radius), size=128)
    dy, dx = torch.gradient(cover, dim=(1, 2))
    return cover.sum((1, 2)) / radius**2, torch.hypot(dx, dy).sum((1, 2)) / radius


def _found(known: bool, shape: int, color: int, center: list[float], radius: float, score: float) -> Found:
    names = (SHAPES[shape], list(COLORS)[color]) if known else (None, None)
    return Found(*names, center=(center[0], center[1]), radius=radius, score=score)
