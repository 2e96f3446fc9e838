"""OCR's own lists: nothing twice, no test text in training, and all of it readable by the reward."""

from __future__ import annotations

from collections import Counter

import pytest

from dgpo.data.prompts import load_prompts
from dgpo.errors import UserError
from dgpo.rewards.builtin.ocr import plain, target


def test_lists_have_their_kinds_and_no_prompt_twice() -> None:
    train, test = load_prompts("ocr:train"), load_prompts("ocr:test")
    assert (len(train), len(test)) == (3000, 256)
    for some in (train, test):
        assert len({*some.prompts}) == len(some)
        for prompt, row in zip(some.prompts, some.metadata):
            assert f'"{row["text"]}"' in prompt
            assert plain(target(prompt, {})) == plain(target(prompt, row))
    assert Counter(row["tag"] for row in train.metadata) == {
        "one_word": 600, "two_words": 1200, "three_words": 600, "number": 600,
    }  # fmt: skip
    assert {*Counter(row["tag"] for row in test.metadata).values()} == {64}


def test_no_training_prompt_asks_for_a_text_of_the_test_list() -> None:
    trained, tested = (
        {plain(row["text"]).removeprefix("the") for row in load_prompts(name).metadata}
        for name in ("ocr:train", "ocr:test")
    )
    assert len(tested) > 150
    assert not trained & tested


def test_kinds_are_chosen_and_mistakes_told() -> None:
    numbers = load_prompts("ocr:test:number,one_word")
    assert [row["tag"] for row in numbers.metadata[:4]] == ["number", "one_word"] * 2
    assert len(load_prompts("ocr:train:number")) == 3000
    with pytest.raises(UserError, match=r"unknown split 'tests' of OCR's prompts\. Did you mean 'test'"):
        load_prompts("ocr:tests")
    with pytest.raises(UserError, match=r"unknown kind of prompt 'words'\. .*one_word"):
        load_prompts("ocr:train:words")
