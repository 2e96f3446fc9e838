"""Values of which some belong together, such as those of one prompt that a list names twice: they are not independent.

The unit of chance is the cluster. With n values x in G clusters and m their mean, its standard error is

    sqrt(G / (G - 1) sum over clusters of (sum over its values of x - m)^2) / n

which for clusters of one value each is the usual deviation / sqrt(n) (Liang and Zeger 1986, for a mean).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor


def numbered(items: Sequence[Hashable]) -> Tensor:
    """(n,) int64: equal items have the same number, counted from 0 in the order in which they first come."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(item, len(numbers)) for item in items], dtype=torch.int64)


def sums_and_counts(values: Tensor, cluster: Tensor) -> tuple[Tensor, Tensor]:
    """(G,) sums and (G,) numbers of the values of each cluster. values: (n,) float; cluster: (n,) int64."""
    own = cluster.unique(return_inverse=True)[1]
    size = int(own.max()) + 1
    sums = values.new_zeros(size).index_add_(0, own, values)
    return sums, torch.bincount(own, minlength=size).to(values)


def standard_error(values: Tensor, cluster: Tensor) -> float | None:
    """Of the mean of all values; None with fewer than two clusters. values: (n,) float; cluster: (n,) int64."""
    clusters = len(cluster.unique())
    if clusters < 2:
        return None
    if clusters == len(values):
        return (values.std() / len(values) ** 0.5).item()
    sums, _ = sums_and_counts(values - values.mean(), cluster)
    return ((clusters / (clusters - 1) * sums.square().sum()).sqrt() / len(values)).item()
