"""Prompts of the words world: write this word, in the metadata that the reward `ocr` reads.

A word is any string of two to four letters, 11,100 in all. In some places of a word some letters are held out from
reinforcement learning, so that `unseen` tells whether a model learned to spell or learned its words. Pretraining sees
all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from dgpo.core import seeds
from dgpo.errors import UserError, did_you_mean
from dgpo.worlds.words.vocabulary import LENGTHS, LETTERS, MAX_LENGTH, TAGS

Metadata = dict[str, Any]  # {"prompt", "tag", "text"}

TRAIN_SIZE, TEST_SIZE = 64, 16  # words of each length


def all_words(length: int) -> list[str]:
    """Every word of one length, in alphabetical order."""
    return ["".join(letters) for letters in product(LETTERS, repeat=length)]


def spell(words: Iterable[str]) -> Tensor:
    """Words -> (N, MAX_LENGTH) int64 index into LETTERS, -1 behind the end."""
    return torch.tensor([[LETTERS.find(letter) for letter in word.ljust(MAX_LENGTH)] for word in words])


def prompt(word: str) -> str:
    """The prompt that asks for a word."""
    return f'the word "{word}"'


def held_out(word: str) -> bool:
    """Whether a letter stands where reinforcement learning must not see it: one letter for each place in a word."""
    return any(LETTERS.index(letter) == (3 * place + 1) % len(LETTERS) for place, letter in enumerate(word))


def load(split: str, tags: Iterable[str] | None = None) -> list[Metadata]:
    """A list of prompts with metadata, the same on every machine; words of all lengths in turn.

    `train` and `unseen` have no letter in one place of a word in common where it is held out. `seen` is a part of
    `train`, for an evaluation from other noise.
    """
    if split not in ("train", "seen", "unseen"):
        known = ("train", "seen", "unseen")
        raise UserError(f"unknown split {split!r} of the words world. {did_you_mean(split, known)}")
    tags = tuple(tags or TAGS)
    for tag in tags:
        if tag not in TAGS:
            raise UserError(f"unknown kind of word {tag!r}. {did_you_mean(tag, TAGS)}")
    columns = [_column(split, LENGTHS[TAGS.index(tag)]) for tag in tags]
    return [row for rows in zip(*columns) for row in rows]


def _column(split: str, length: int) -> list[Metadata]:
    pool = [word for word in all_words(length) if held_out(word) == (split == "unseen")]
    order = torch.randperm(len(pool), generator=seeds.generator(0, f"words/{length}")).tolist()
    words = [pool[i] for i in order[: TRAIN_SIZE if split == "train" else TEST_SIZE]]
    return [{"prompt": prompt(word), "tag": f"letters_{length}", "text": word} for word in words]
