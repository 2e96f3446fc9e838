"""Sums over the images of one prompt. A group may be split over micro-batches or ranks.

Every coupling between images goes through `group_sum`; `reduce` completes a partial (num_groups,) sum. It is the
identity where all rows are at hand, an all-reduce over ranks, or the total that a statistics pass has found before.
The sum is a masked reduction rather than `index_add`, whose atomics make CUDA results differ from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor

Reduce = Callable[["Tensor"], "Tensor"]


def identity(x: Tensor) -> Tensor:
    """The `reduce` of a caller that holds every row."""
    return x


def _by_group(x: Tensor, group_index: Tensor, num_groups: int, fill: float) -> Tensor:
    """x: (B,); group_index: (B,); returns (num_groups, B), each row one group's values and `fill` elsewhere."""
    groups = torch.arange(num_groups, device=group_index.device)
    return torch.where(group_index == groups[:, None], x, fill)


def group_sum(x: Tensor, group_index: Tensor, num_groups: int, reduce: Reduce = identity) -> Tensor:
    """x: (B,); group_index: (B,) int64 in [0, num_groups); returns (num_groups,), 0 for a group without rows."""
    return reduce(_by_group(x, group_index, num_groups, 0.0).sum(1))


def group_max(x: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
    """x: (B,) float; group_index: (B,) int64; returns (num_groups,), -inf for a group without rows."""
    return _by_group(x, group_index, num_groups, -math.inf).amax(1)


def group_size(group_index: Tensor, num_groups: int, reduce: Reduce = identity) -> Tensor:
    """group_index: (B,) int64; returns (num_groups,) fp32, the number of images of each group."""
    return group_sum(torch.ones_like(group_index, dtype=torch.float32), group_index, num_groups, reduce)


def group_mean(x: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
    """x: (B,) float, all rows; group_index: (B,) int64; returns (num_groups,), 0 for a group without rows."""
    return group_sum(x, group_index, num_groups) / group_size(group_index, num_groups).clamp(min=1)


def group_std(x: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
    """Population standard deviation (divides by the group's size). Arguments and result as in `group_mean`."""
    centred = x - group_mean(x, group_index, num_groups)[group_index]
    return group_mean(centred.square(), group_index, num_groups).sqrt()
