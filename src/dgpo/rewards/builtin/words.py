"""Held-out metrics of the words world, called as rewards, which share one reading. That world's reward is `ocr`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.base import group_reward, reads_side, requires, shares
from dgpo.rewards.builtin.groups import for_each
from dgpo.rewards.rows import checks_rows
from dgpo.worlds.common.ground import IMAGE_SIZE
from dgpo.worlds.words import metrics
from dgpo.worlds.words.reader import read, word
from dgpo.worlds.words.render import Pictures
from dgpo.worlds.words.vocabulary import LETTERS, MAX_LENGTH


def _is_word(prompt: str, metadata: Mapping[str, Any]) -> str | None:
    text = metadata["text"]
    if not isinstance(text, str) or not text:
        raise UserError(f"text={text!r} of the prompt {prompt!r} is no word")
    if len(text) > MAX_LENGTH or not set(text) <= set(LETTERS):
        return f"the world's reader knows words of up to {MAX_LENGTH} of the letters {LETTERS}, and no other is exact"
    return None


@checks_rows(_is_word)
@requires("text")
@reads_side(IMAGE_SIZE)
@shares(read)
def legibility(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], *, seen: Pictures) -> dict[str, Any]:
    """How near the pictures are to clean renders of what they say, whatever it is. (B, 3, 64, 64) -> (B,) in [0, 1].

    Beside it `exact`: 1 where the world's own reader, which shares nothing with `ocr`, reads the word asked for.
    """
    exact = [float(word(letters) == row["text"]) for letters, row in zip(seen.letters, metadata)]
    return {"legibility": metrics.legibility(images, seen), "exact": exact}


@checks_rows(_is_word)
@group_reward
@requires("text")
@reads_side(IMAGE_SIZE)
@shares(read)
def words_diversity(
    images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], group_index: Tensor, *, seen: Pictures
) -> Tensor:
    """The diversity of all legible pictures of an image's prompt, 1 for independent ones. (B, 3, 64, 64) -> (B,)."""
    lengths = torch.tensor([len(row["text"]) for row in metadata])
    return for_each(metrics.diversity(images, seen, group_index, lengths), group_index)
