"""A CLIP tokenizer for the world's few words, built without randomness.

Byte-pair encoding on the word list: the most frequent pair is merged, ties go to the first in alphabetical order, until
every word is one token. All bytes are in the vocabulary, so that any other prompt still has a reading.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from transformers import CLIPTokenizer

from dgpo.worlds.shapes.prompts import all_prompts
from dgpo.worlds.shapes.vocabulary import KINDS

CONTEXT = 16  # tokens, begin and end included
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of both text encoders."""
    words = sorted({w for kind in KINDS for p in all_prompts(kind) for w in p["prompt"].split()})
    merges = _merges(words)
    symbols = _byte_symbols()
    symbols += [s + "</w>" for s in symbols] + [a + b for a, b in merges] + [BEGIN, END]
    return CLIPTokenizer(
        vocab={symbol: i for i, symbol in enumerate(symbols)},
        merges=merges,  # type: ignore[arg-type]  (pairs, as the tokenizers library takes them)
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=CONTEXT,
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


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = [chr(b) for b in printable]
    return stand_ins + [chr(256 + n) for n in range(256 - len(printable))]
