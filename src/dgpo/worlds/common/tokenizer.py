"""CLIP tokenizers with small vocabularies, built without randomness.

All bytes are in the vocabulary, so that any prompt has a reading.
"""

from __future__ import annotations

from transformers import CLIPTokenizer

CONTEXT = 16  # tokens, begin and end included
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def byte_tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    """Byte-pair encoding with these merges, in this order; without any, each letter is a token of its own."""
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


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    stand_ins = [chr(b) for b in printable]
    return stand_ins + [chr(256 + n) for n in range(256 - len(printable))]
