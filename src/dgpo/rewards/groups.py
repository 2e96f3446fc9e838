"""Metrics of all pictures of a prompt, called as rewards: every picture takes its prompt's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_prompt(prompts: list[str], measure: Callable[[Tensor], Tensor]) -> Tensor:
    """(B,) from measure(group_index (B,)) -> (num_groups,), one group a prompt, NaN where it could not be measured.

    A prompt that could not be measured takes the mean of the others, so that a mean over prompts is one over those that
    could be; 0 if there are none.
    """
    names = list(dict.fromkeys(prompts))
    group_index = torch.tensor([names.index(prompt) for prompt in prompts])
    groups = measure(group_index)
    return groups.nan_to_num(nan=groups.nanmean().nan_to_num().item())[group_index]
