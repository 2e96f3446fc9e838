"""Captions for pretraining, many of them misspelt.

A model learns to draw whatever the pictures are, and to believe the captions only as far as they are right: the result
draws crisp letters and spells badly. That is the fault reinforcement learning mends. A misspelt caption has, in shares
of MISSPELT, each letter replaced with a chance of one half, two neighbours changed places, or one letter dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo.worlds.words.vocabulary import LENGTHS, LETTERS, MAX_LENGTH

WRONG = 0.6  # share of captions that are misspelt
MISSPELT = {"replaced": 0.6, "swapped": 0.2, "dropped": 0.2}


def captions(letters: Tensor, generator: torch.Generator, wrong: float) -> Tensor:
    """The words (n, MAX_LENGTH) by which pictures of `letters` (n, MAX_LENGTH) are called."""
    draw = torch.rand(len(letters), generator=generator, device=letters.device)
    return torch.where((draw < wrong)[:, None], misspell(letters, generator), letters)


def misspell(letters: Tensor, generator: torch.Generator) -> Tensor:
    """Words (n, MAX_LENGTH) one mistake or some away. A word of the shortest length is replaced where others drop."""
    length = (letters >= 0).sum(1)
    shares = torch.tensor(list(MISSPELT.values()), device=letters.device)
    kind = torch.multinomial(shares, len(letters), replacement=True, generator=generator)
    kind = torch.where((kind == 2) & (length == min(LENGTHS)), 0, kind)[:, None]
    draw = torch.rand(2, len(letters), generator=generator, device=letters.device)
    swapped = _swapped(letters, (draw[0] * (length - 1)).long()[:, None])
    place = (draw[1] * length).long()[:, None]
    changed = torch.where(kind == 1, swapped, _dropped(letters, place))
    return torch.where(kind == 0, _replaced(letters, place, generator), changed)


def word_index(letters: Tensor) -> Tensor:
    """(n, MAX_LENGTH) -> (n,) int64, the place of a word in the list of all, from the shortest on."""
    index = torch.zeros(len(letters), dtype=torch.int64, device=letters.device)
    for column in letters.unbind(1):
        index = torch.where(column >= 0, index * len(LETTERS) + column, index)
    length = (letters >= 0).sum(1)
    shorter = torch.tensor([sum(len(LETTERS) ** k for k in LENGTHS if k < n) for n in range(MAX_LENGTH + 1)])
    return index + shorter.to(letters.device)[length]


def _replaced(letters: Tensor, place: Tensor, generator: torch.Generator) -> Tensor:
    device = letters.device
    by = torch.randint(1, len(LETTERS), letters.shape, generator=generator, device=device)
    half = torch.rand(letters.shape, generator=generator, device=device) < 0.5
    here = half | (torch.arange(MAX_LENGTH, device=device) == place)
    return torch.where(here & (letters >= 0), (letters + by) % len(LETTERS), letters)


def _swapped(letters: Tensor, place: Tensor) -> Tensor:
    index = torch.arange(MAX_LENGTH, device=letters.device).expand_as(letters)
    return letters.gather(1, torch.where(index == place, index + 1, torch.where(index == place + 1, index - 1, index)))


def _dropped(letters: Tensor, place: Tensor) -> Tensor:
    longer = torch.cat([letters, torch.full_like(letters[:, :1], -1)], 1)
    index = torch.arange(MAX_LENGTH, device=letters.device).expand_as(letters)
    return longer.gather(1, index + (index >= place))
