"""The reader: the word that best explains a picture, found by comparing it with the letters' masks everywhere.

1. The tint is the one nearest to the mean of the pale pixels, the ink the one in whose direction most of the rest lies.
2. Every pixel's share of the way from tint to ink is its coverage, as the renderer would have it.
3. For each font, place and letter the squared error of coverage within one cell is a correlation with the mask. A word
   at a place gains what its best letters explain of the picture's ink; the reading is the font, length and place that
   gain most, and nothing where no word gains. Places are all pixels, not the renderer's grid alone.
It shares nothing with the OCR that a model is trained on, and never trains one: the two are fooled in different ways.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo.worlds.common.ground import TINTS, nearest_tint, palette, require_size
from dgpo.worlds.words.glyphs import masks
from dgpo.worlds.words.render import Pictures
from dgpo.worlds.words.vocabulary import CELL, INKS, LENGTHS, LETTERS, MAX_LENGTH

CHUNK = 64  # images at once


@torch.no_grad()
def read(images: Tensor) -> Pictures:
    """(B, 3, 64, 64) float in [0, 1] -> the B pictures that the renderer would draw most alike."""
    require_size(images, "words")
    chunks = [_read(chunk) for chunk in images.detach().float().cpu().split(CHUNK)]
    return Pictures(*(torch.cat(parts) for parts in zip(*chunks)))


def word(letters: Tensor) -> str:
    """One row (MAX_LENGTH,) of indices -> the word."""
    return "".join(LETTERS[i] for i in letters.tolist() if i >= 0)


def _read(images: Tensor) -> Pictures:
    tint, ink, cover = _coverage(images)
    gain, letter = _gains(cover)  # (B, fonts, height, width) each
    best = torch.zeros(len(images))
    font, corner = torch.zeros_like(tint), torch.zeros(len(images), 2, dtype=torch.int64)
    letters = torch.full((len(images), MAX_LENGTH), -1)
    for length in LENGTHS:
        wide = gain.shape[-1] - (length - 1) * CELL[1]
        total = torch.stack([gain[..., place * CELL[1] :][..., :wide] for place in range(length)]).sum(0)
        value, flat = total.flatten(1).max(1)
        f, y, x = torch.unravel_index(flat, total.shape[1:])
        columns = x[:, None] + CELL[1] * torch.arange(length)
        spelled = F.pad(
            letter[torch.arange(len(x))[:, None], f[:, None], y[:, None], columns], (0, MAX_LENGTH - length), value=-1
        )
        better = value > best
        best, font = torch.where(better, value, best), torch.where(better, f, font)
        corner = torch.where(better[:, None], torch.stack([x, y], 1), corner)
        letters = torch.where(better[:, None], spelled, letters)
    return Pictures(letters, font, ink, tint, corner)


def _coverage(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index into TINTS (B,), index into INKS (B,), how much of each pixel ink covers (B, 64, 64) in [0, 1]."""
    inks, tints = palette(INKS.values()), palette(TINTS)
    tint = nearest_tint(images)
    away = images - tints[tint][:, :, None, None]
    toward = inks[None] - tints[tint][:, None]  # (B, inks, 3)
    mean = (away * away.square().sum(1, keepdim=True)).sum((2, 3))  # far pixels decide
    ink = F.cosine_similarity(mean[:, None], toward, dim=-1).argmax(1)
    chosen = toward[torch.arange(len(ink)), ink]
    cover = torch.einsum("bchw,bc->bhw", away, chosen) / chosen.square().sum(1)[:, None, None]
    return tint, ink, cover.clamp(0, 1)


def _gains(cover: Tensor) -> tuple[Tensor, Tensor]:
    """What the best letter of each font explains of a cell's ink, and which it is; both (B, fonts, 49, 53).

    A mask m explains sum c^2 - sum (c - m)^2 = 2 sum c m - sum m^2 of the coverage c.
    """
    atlas = masks()
    gain = 2 * F.conv2d(cover[:, None], atlas.flatten(0, 1)[:, None]) - atlas.square().sum((2, 3)).view(1, -1, 1, 1)
    return gain.unflatten(1, atlas.shape[:2]).max(2)
