"""Advantages against hand-computed numbers, and their invariances."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo.core.advantages import (
    best_worst_pairs,
    frac_reward_zero_std,
    group_advantages,
    most_informative,
    unequal_groups,
)
from dgpo.core.groups import group_sum

REWARDS = torch.tensor([1.0, 3.0, 0.5, 0.5, 2.0])
INDEX = torch.tensor([0, 0, 1, 1, 1])


def test_hand_computed_per_group():
    spread = statistics.pstdev([0.5, 0.5, 2.0])
    expected = [-1 / 1.0001, 1 / 1.0001, -0.5 / (spread + 1e-4), -0.5 / (spread + 1e-4), 1 / (spread + 1e-4)]
    assert group_advantages(REWARDS, INDEX, 2, "group").tolist() == pytest.approx(expected)


def test_hand_computed_per_batch():
    spread = statistics.pstdev(REWARDS.tolist()) + 1e-4
    expected = [r / spread for r in (-1.0, 1.0, -0.5, -0.5, 1.0)]
    assert group_advantages(REWARDS, INDEX, 2, "batch").tolist() == pytest.approx(expected)


def test_clip_bounds_an_outlier():
    rewards = torch.tensor([100.0] + [0.0] * 99)
    index = torch.zeros(100, dtype=torch.int64)
    assert group_advantages(rewards, index, 1, clip=5.0).max() == 5.0
    assert group_advantages(rewards, index, 1, clip=None).max() > 9.0


@pytest.mark.parametrize("std", ["group", "batch"])
def test_equal_rewards_give_exact_zeros_in_fp32(std):
    rewards = torch.tensor([0.1] * 7 + [0.3, 0.9])
    index = torch.tensor([0] * 7 + [1, 1])
    advantages = group_advantages(rewards, index, 2, std)
    assert advantages.dtype == torch.float32
    assert (advantages[:7] == 0).all()
    assert (advantages[7:] != 0).all()


grouped = st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, 3)), min_size=2, max_size=24)


@settings(max_examples=30, deadline=None)
@given(grouped, st.lists(st.integers(-1000, 1000), min_size=4, max_size=4), st.sampled_from(["group", "batch"]))
def test_invariances(rows, shifts, std):
    rewards = torch.tensor([r / 100 for r, _ in rows], dtype=torch.float64)
    index = torch.tensor([g for _, g in rows])
    advantages = group_advantages(rewards, index, 4, std, clip=None)
    torch.testing.assert_close(group_sum(advantages, index, 4), torch.zeros(4), rtol=0, atol=1e-4)
    assert ((advantages.diff() * rewards.diff())[index.diff() == 0] >= 0).all()

    shift = torch.tensor(shifts, dtype=torch.float64)[index] if std == "group" else float(shifts[0])
    torch.testing.assert_close(
        group_advantages(rewards + shift, index, 4, std, clip=None), advantages, rtol=1e-5, atol=1e-6
    )

    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    shuffled = group_advantages(rewards[order], index[order], 4, std, clip=None)
    torch.testing.assert_close(shuffled, advantages[order], rtol=1e-5, atol=1e-6)


def test_best_and_worst_rows():
    best, worst = best_worst_pairs(REWARDS, torch.tensor([1, 1, 0, 0, 0]), 2)
    assert best.tolist() == [4, 1]
    assert worst.tolist() == [2, 0]
    best, worst = best_worst_pairs(torch.full((3,), 0.7), torch.zeros(3, dtype=torch.int64), 1)
    assert torch.equal(best, worst)


def test_share_of_groups_that_teach_nothing():
    assert frac_reward_zero_std(torch.tensor([0.1, 0.1, 0.2, 0.3]), torch.tensor([0, 0, 1, 1]), 2) == 0.5


def test_the_most_informative_are_the_extremes_centred_anew():
    advantages = torch.tensor([0.5, -2.0, 0.1, 3.0, -1.0, 1.0, 0.0, -0.6])
    index = torch.tensor([0, 1, 0, 0, 0, 1, 1, 0])
    centred, chosen = most_informative(advantages, index, 2, keep=2)
    assert chosen.tolist() == [False, True, False, True, True, True, False, False]
    assert centred.tolist() == [0.0, -1.5, 0.0, 2.0, -2.0, 1.5, 0.0, 0.0]
    centred, chosen = most_informative(advantages[index == 0], torch.zeros(5, dtype=torch.int64), 1, keep=4)
    assert chosen.tolist() == [True, False, True, True, True]
    assert centred.tolist() == pytest.approx([0.025, 0, 2.525, -1.475, -1.075])


def test_of_equal_images_the_first_and_the_last_are_chosen():
    advantages, index = torch.zeros(10), torch.arange(2).repeat(5)
    centred, chosen = most_informative(advantages, index, 2, keep=2)
    assert torch.nonzero(chosen).flatten().tolist() == [0, 1, 8, 9]
    assert (centred == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=12, max_size=12), st.sampled_from([2, 4]))
def test_half_of_the_chosen_come_from_either_end(values, keep):
    advantages, index = torch.tensor(values) / 10, torch.arange(2).repeat(6)
    centred, chosen = most_informative(advantages, index, 2, keep)
    assert centred.dtype == advantages.dtype
    torch.testing.assert_close(group_sum(centred, index, 2), torch.zeros(2), rtol=0, atol=1e-5)
    for group in range(2):
        own, among = advantages[index == group], chosen[index == group]
        assert among.sum() == keep
        expected = torch.cat([own.sort().values[: keep // 2], own.sort().values[-keep // 2 :]])
        assert torch.equal(own[among].sort().values, expected)


def test_unequal_groups():
    rewards, index = torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1, 0.3000001]), torch.tensor([0, 1, 0, 1, 0, 2])
    assert unequal_groups(rewards, index, 3).tolist() == [False, False, False]
    assert unequal_groups(rewards, torch.tensor([0, 1, 0, 1, 0, 1]), 2).tolist() == [False, True]
