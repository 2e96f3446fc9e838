"""The standard error and the interval of values of which some belong together."""

from __future__ import annotations

import pytest
import torch

from dgpo.core import seeds
from dgpo.core.clusters import numbered, standard_error, sums_and_counts


def test_equal_items_have_equal_numbers() -> None:
    assert numbered(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 2, 1]
    assert numbered([]).tolist() == []


def test_values_of_different_clusters_have_the_usual_error() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 7.0])
    assert standard_error(values, torch.arange(4)) == (values.std() / 2).item()


def test_a_case_by_hand() -> None:
    """Clusters (0, 2) and (4, 6, 8) of mean 4: sums of deviations -6 and 6, so sqrt(2 * 72) / 5."""
    values, cluster = torch.tensor([0.0, 4.0, 2.0, 6.0, 8.0]), torch.tensor([7, 3, 7, 3, 3])
    assert standard_error(values, cluster) == pytest.approx(12 / 5)
    sums, counts = sums_and_counts(values, cluster)
    assert (sums.tolist(), counts.tolist()) == ([18, 2], [3, 2])


def test_repeating_every_value_changes_nothing() -> None:
    values = torch.randn(30, generator=seeds.generator(0, "clusters"), dtype=torch.float64)
    once = standard_error(values, torch.arange(30))
    assert standard_error(values.repeat(4), torch.arange(30).repeat(4)) == pytest.approx(once)


def test_one_cluster_has_no_error() -> None:
    assert standard_error(torch.tensor([1.0, 2.0]), torch.tensor([5, 5])) is None
