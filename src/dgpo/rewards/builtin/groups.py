"""What is measured on the pictures of a prompt together, as a score of each."""

from __future__ import annotations

from torch import Tensor


def for_each(measured: Tensor, group_index: Tensor) -> Tensor:
    """(num_groups,), NaN where a group could not be measured, and (B,) int64 -> (B,): every picture takes its group's.

    A group that could not be measured takes the mean of the others, so that a mean over groups is one over those that
    could be; 0 if there are none.
    """
    return measured.nan_to_num(nan=measured.nanmean().nan_to_num().item())[group_index]
