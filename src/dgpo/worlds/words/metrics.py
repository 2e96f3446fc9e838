"""Held-out metrics of the words world, which never train: they show when a reward is earned by spoiling the pictures.

`legibility` draws again what the reader read, the best reading and not the word asked for, and compares pixels: it
falls with blur, malformed letters and marks beside them, and says nothing of spelling. `diversity` compares the legible
pictures of one prompt; the others are left out, so that scribbling in many ways earns nothing.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from dgpo.core import seeds
from dgpo.worlds.common.ground import TINTS, palette
from dgpo.worlds.common.likeness import likeness
from dgpo.worlds.words.render import Pictures, draw, render
from dgpo.worlds.words.vocabulary import MAX_LENGTH

LEGIBLE = 0.5  # a picture below this shows no style
INDEPENDENT = 256  # pictures that set diversity's unit


def legibility(images: Tensor, reading: Pictures) -> Tensor:
    """How like a picture is to what was read in it, drawn again: 1 for a clean render of any word, 0 where none is.

    images: (B, 3, 64, 64) float in [0, 1]; reading: what `read` finds in them; returns (B,) in [0, 1].
    """
    return likeness(images.detach().float().cpu(), render(reading), palette(TINTS)[reading.tint])


def diversity(images: Tensor, reading: Pictures, group_index: Tensor, lengths: Tensor) -> Tensor:
    """How different the pictures of each prompt are, in units of pictures drawn independently for it.

    images, reading: as in `legibility`; group_index: (B,) int64; lengths: (B,) int64 of the words asked for, alike in a
    group. Returns (num_groups,): the mean over font, ink, tint and place of the mean distance between two legible
    pictures: about 1 for independent renders, 0 for copies, NaN where there are no two such pictures.
    """
    legible = legibility(images, reading) > LEGIBLE
    found = torch.full((int(group_index.max()) + 1,), torch.nan)
    for index in group_index.unique().tolist():
        rows = (group_index == index).nonzero()[:, 0]
        kept = rows[legible[rows]]
        if len(kept) > 1:
            found[index] = (_distances(reading.rows(kept)) / _unit(int(lengths[rows[0]]))).mean()
    return found


@cache
def _unit(length: int) -> Tensor:
    """Distances between independent pictures; of a word only the length matters."""
    letters = torch.where(torch.arange(MAX_LENGTH) < length, 0, -1).expand(INDEPENDENT, -1)
    return _distances(draw(letters, seeds.generator(0, "words/diversity")))


def _distances(pictures: Pictures) -> Tensor:
    """(4,) mean over pairs of n pictures of: other font, other ink, other tint, distance of places in pixels."""
    parts = [(part[:, None] != part).float() for part in (pictures.font, pictures.ink, pictures.tint)]
    corner = pictures.corner.float()
    pairs = len(corner) * (len(corner) - 1)
    return torch.stack([*parts, (corner[:, None] - corner).norm(dim=-1)]).sum((1, 2)) / pairs
