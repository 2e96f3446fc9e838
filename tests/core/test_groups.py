"""Group reductions against plain Python, split over parts, and in any order."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo.core.groups import group_max, group_mean, group_size, group_std, group_sum

X = torch.tensor([1.0, 2.0, 5.0, 7.0, 9.0])
INDEX = torch.tensor([2, 0, 2, 2, 0])


def test_hand_computed():
    assert group_sum(X, INDEX, 4).tolist() == [11.0, 0.0, 13.0, 0.0]
    assert group_size(INDEX, 4).tolist() == [2.0, 0.0, 3.0, 0.0]
    assert group_max(X, INDEX, 4).tolist() == [9.0, -torch.inf, 7.0, -torch.inf]
    torch.testing.assert_close(group_mean(X, INDEX, 4), torch.tensor([5.5, 0.0, 13 / 3, 0.0]))
    expected = [statistics.pstdev([2, 9]), 0.0, statistics.pstdev([1, 5, 7]), 0.0]
    assert group_std(X, INDEX, 4).tolist() == pytest.approx(expected)


def test_reduce_sees_the_partial_sums_and_its_result_is_returned():
    seen = []
    total = group_sum(X, INDEX, 3, reduce=lambda part: seen.append(part) or part + 100)
    assert seen[0].tolist() == [11.0, 0.0, 13.0]
    assert total.tolist() == [111.0, 100.0, 113.0]


def test_a_value_that_is_not_finite_stays_in_its_group():
    assert group_sum(torch.tensor([torch.nan, 1.0]), torch.tensor([0, 1]), 2)[1] == 1.0


rows = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 4)), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(rows, st.randoms(use_true_random=False), st.integers(0, 20))
def test_order_and_splits_do_not_matter(rows, random, cut):
    def sums(some):
        values = torch.tensor([value for value, _ in some], dtype=torch.float64)
        return group_sum(values, torch.tensor([group for _, group in some], dtype=torch.int64), 5)

    whole = sums(rows)
    torch.testing.assert_close(sums(rows[:cut]) + sums(rows[cut:]), whole, rtol=1e-12, atol=1e-10)
    random.shuffle(rows)
    torch.testing.assert_close(sums(rows), whole, rtol=1e-12, atol=1e-10)
