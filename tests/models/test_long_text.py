"""What is said of prompts that are longer than the text encoders read. What each family reads: test_contract.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dgpo.models.long_text import longer_than


def words(prompts: list[str], verbose: bool) -> Any:
    return SimpleNamespace(input_ids=[prompt.split() for prompt in prompts])


def letters(prompts: list[str], verbose: bool) -> Any:
    return SimpleNamespace(input_ids=[[*prompt] for prompt in prompts])


PIPELINE = SimpleNamespace(tokenizer=words, tokenizer_2=letters)


def test_the_longest_is_shown_abbreviated_and_equal_prompts_are_counted_once() -> None:
    prompts = ["a cat", "a cat and a dog", "a cat and a dog", "a cat " * 50]
    assert longer_than(PIPELINE, {"tokenizer": 4}, prompts) == [
        "2 of 3 prompts are longer than the 4 tokens of text that the model reads; what comes after them is ignored. "
        f"The longest has 100 tokens: '{'a cat ' * 10}...'"
    ]


def test_only_what_no_encoder_reads_is_ignored() -> None:
    limits = {"tokenizer_2": 10, "tokenizer": 3}
    assert longer_than(PIPELINE, limits, ["a b c d", "abcdefghijk", "a"]) == []
    (line,) = longer_than(PIPELINE, limits, ["a cat and a dog", "a b c d"])
    assert line.startswith("1 of 2 prompts is longer than the 10 tokens")
    assert line.endswith("The longest has 15 tokens: 'a cat and a dog'")


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert longer_than(PIPELINE, {}, ["a cat and a dog"]) == []
    assert longer_than(PIPELINE, {"tokenizer": 1}, []) == []
