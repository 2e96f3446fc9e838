"""A CLIP tokenizer for the world's few words.

Byte-pair encoding on the word list: the most frequent pair is merged, ties go to the first in alphabetical order, until
every word is one token.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from transformers import CLIPTokenizer

from dgpo.worlds.common.tokenizer import byte_tokenizer
from dgpo.worlds.shapes.prompts import all_prompts
from dgpo.worlds.shapes.vocabulary import KINDS


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of both text encoders."""
    return byte_tokenizer(
        _merges(sorted({w for kind in KINDS for p in all_prompts(kind) for w in p["prompt"].split()}))
    )


def _merges(words: list[str]) -> list[tuple[str, str]]:
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(p) > 1 for p in pieces):
        counts = Counter(pair for p in pieces for pair in pairwise(p))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [_merge(p, best) for p in pieces]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out
