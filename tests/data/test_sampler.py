"""Prompts in turn, and prompts by what they still teach."""

from __future__ import annotations

import pytest
import torch

from dgpo.data.sampler import FocusedSampler, PromptSampler

TAGS = ["easy"] * 20 + ["hard"] * 20


def test_without_focus_prompts_come_in_turn() -> None:
    plain, focused = PromptSampler(40, 3), FocusedSampler(3, TAGS, 0.0)
    for _ in range(6):
        assert focused.next(7) == plain.next(7)
        focused.show([1], [5.0])


def test_the_expected_spread_by_hand() -> None:
    sampler = FocusedSampler(0, ["a", "a", "a", "b", "b", "c"], 0.5)
    assert sampler.expected().tolist() == [1.0] * 6  # nothing is known
    sampler.show([0, 1, 3], [0.4, 0.0, 0.1])
    # a: mean .2; what was shown counts half; c was never shown: as the best tag, so that it is tried
    assert sampler.expected().tolist() == pytest.approx([0.3, 0.1, 0.2, 0.1, 0.1, 0.2])
    sampler.show([0], [0.0])
    assert sampler.expected().tolist() == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.1, 0.1])


def test_what_a_tag_showed_long_ago_is_forgotten() -> None:
    sampler = FocusedSampler(0, ["a"] * 40, 0.5)
    sampler.show(range(20), [1.0] * 20)
    sampler.show(range(20, 36), [0.0] * 16)
    assert sampler.expected()[39] == 0
    assert sampler.expected()[0] == 0.5


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_the_share_of_a_batch_follows_the_spread(share: float) -> None:
    sampler = FocusedSampler(1, TAGS, share)
    sampler.show([0, 20], [0.1, 0.4])
    batches = [sampler.next(8) for _ in range(400)]
    assert all(len(set(batch)) == 8 for batch in batches)
    hard = sum(index >= 20 for batch in batches for index in batch) / (400 * 8)
    # within a batch nothing comes twice, so that the drawn ones are a little nearer to half than .8
    assert hard == pytest.approx((1 - share) / 2 + share * 0.78, abs=0.03)


def test_every_prompt_keeps_its_turn_whatever_it_showed() -> None:
    sampler = FocusedSampler(1, TAGS, 0.75)
    sampler.show(range(40), [0.0] * 20 + [1.0] * 20)
    seen = {index for _ in range(25) for index in sampler.next(8)}  # two in turn of each batch: 50 of 40
    assert seen == set(range(40))


def test_position_and_what_was_shown_are_its_whole_state() -> None:
    first = FocusedSampler(7, TAGS, 0.6)
    for k in range(5):
        batch = first.next(6)
        first.show(batch, torch.rand(6, generator=torch.Generator().manual_seed(k)).tolist())
    other = FocusedSampler(7, TAGS, 0.6)
    other.position, other.shown = first.position, dict(first.shown.items())
    assert [first.next(6) for _ in range(4)] == [other.next(6) for _ in range(4)]


@pytest.mark.parametrize("groups", [4, 5, 6, 9])
def test_more_groups_than_prompts(groups: int) -> None:
    sampler = FocusedSampler(7, ["a"] * 5, 0.5)
    batch = sampler.next(groups)
    assert len(batch) == groups
    assert len(set(batch)) == min(groups, 5)
