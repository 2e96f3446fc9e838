"""The renderer: one word a picture, its letters copied from the masks into place and painted on a pale tint."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgpo.worlds.common.ground import IMAGE_SIZE, TINTS, palette
from dgpo.worlds.words.glyphs import masks
from dgpo.worlds.words.vocabulary import BORDER, CELL, FONTS, GRID, INKS, MAX_LENGTH


class Pictures(NamedTuple):
    """N pictures of one word each."""

    letters: Tensor  # (N, MAX_LENGTH) int64 index into LETTERS, -1 behind the word's end
    font: Tensor  # (N,) int64 index into FONTS
    ink: Tensor  # (N,) int64 index into INKS
    tint: Tensor  # (N,) int64 index into TINTS
    corner: Tensor  # (N, 2) int64 pixels (x, y), of the word's upper left corner

    def rows(self, index: Tensor) -> Pictures:
        return Pictures(*(part[index] for part in self))


def draw(letters: Tensor, generator: torch.Generator) -> Pictures:
    """One random picture of every word; letters (N, MAX_LENGTH). Runs on the generator's device."""
    device, count = generator.device, len(letters)
    letters = letters.to(device)

    def any_of(choices: int) -> Tensor:
        return torch.randint(choices, (count,), generator=generator, device=device)

    length = (letters >= 0).sum(1)
    extent = torch.stack([length * CELL[1], torch.full_like(length, CELL[0])], 1)
    places = (IMAGE_SIZE - 2 * BORDER - extent) // GRID + 1
    share = torch.rand(count, 2, generator=generator, device=device)
    return Pictures(
        letters=letters,
        font=any_of(len(FONTS)),
        ink=any_of(len(INKS)),
        tint=any_of(len(TINTS)),
        corner=BORDER + GRID * (share * places).long(),
    )


def render(pictures: Pictures) -> Tensor:
    """Pictures -> images (N, 3, 64, 64) fp32 in [0, 1]."""
    device = pictures.letters.device
    inks, tints = palette(INKS.values(), device), palette(TINTS, device)
    cover = coverage(pictures.letters, pictures.font, pictures.corner)[:, None]
    return torch.lerp(tints[pictures.tint][:, :, None, None], inks[pictures.ink][:, :, None, None], cover)


def coverage(letters: Tensor, font: Tensor, corner: Tensor) -> Tensor:
    """How much of each pixel a word covers: (N, 64, 64) in [0, 1]."""
    device, (height, width) = letters.device, CELL
    atlas = masks().to(device)
    cover = torch.zeros(len(letters), IMAGE_SIZE, IMAGE_SIZE, device=device)
    down, right = torch.arange(height, device=device), torch.arange(width, device=device)
    for place in range(MAX_LENGTH):
        rows = (letters[:, place] >= 0).nonzero()[:, 0]
        x = corner[rows, 0, None, None] + place * width + right
        y = corner[rows, 1, None, None] + down[:, None]
        cover[rows[:, None, None], y, x] = atlas[font[rows], letters[rows, place]]
    return cover
