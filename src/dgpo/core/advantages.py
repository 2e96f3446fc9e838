"""From rewards to advantages: how much better an image is than the others of its own prompt.

`A_i = (r_i - mean_group) / (std + eps)`, clipped (GRPO, arXiv 2402.03300; DGPO, arXiv 2510.08425). A sums to zero
over a group unless the clip acts. Deviation: float64 inside, and rewards are first measured from the group's best, so
that equal rewards give exact zeros; float32 rounding over `eps` would make advantages of 1e-4 out of nothing.

Several rewards may be normalised before they are summed (GDPO, arXiv 2601.05242), so that a reward's scale is no part
of its weight: `A_k = (r_k - mean_group) / std_group`, `A_sum = sum_k w_k A_k`, then `A_sum` over the whole batch's
deviation. The last step is `group_advantages` with std="batch" on the sum, whose mean is 0 in every group; with
std="group", which the paper does not have, every group weighs the same. Deviation: `eps` stands beside std_group too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from dgpo.core.groups import group_max, group_mean, group_std
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor


def group_advantages(
    rewards: Tensor,
    group_index: Tensor,
    num_groups: int,
    std: Literal["group", "batch"] = "group",
    clip: float | None = 5.0,
    eps: float = 1e-4,
) -> Tensor:
    """Group-normalised rewards, for the whole batch at once.

    rewards: (B,) float, any units; group_index: (B,) int64; returns (B,) fp32 in [-clip, clip].
    std: "group" divides by each group's own deviation, "batch" by that of all rewards around their common mean.
    """
    device, group_index = rewards.device, group_index.cpu()
    rewards = rewards.cpu().double()  # on the CPU, for Apple's GPUs know no float64
    below_best = rewards - group_max(rewards, group_index, num_groups)[group_index]
    centred = below_best - group_mean(below_best, group_index, num_groups)[group_index]
    scales = {
        "group": group_std(below_best, group_index, num_groups)[group_index],
        "batch": rewards.std(correction=0),
    }
    advantages = (centred / (scales[std] + eps)).float().to(device)
    return advantages if clip is None else advantages.clamp(-clip, clip)


def normalized_sum(
    scores: Mapping[str, Tensor], weights: Mapping[str, float], group_index: Tensor, num_groups: int
) -> Tensor:
    """sum_k w_k A_k: each score made mean 0 and deviation 1 within its groups before it is weighted (GDPO, see above).

    scores: name -> (B,) float, all NaN in the groups that the score does not concern, where it adds 0; weights: names
    of scores and their weights; group_index: (B,) int64; returns (B,) fp32. A score equal within a group adds 0 there.
    """
    total = torch.zeros(len(group_index), device=group_index.device)
    for name, weight in weights.items():
        total += weight * group_advantages(scores[name], group_index, num_groups, clip=None).nan_to_num()
    return total


def most_informative(advantages: Tensor, group_index: Tensor, num_groups: int, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` images of each group with the largest and smallest advantages, which are then centred anew.

    advantages: (B,); group_index: (B,) int64; keep: even, 2 or more; half of them from either end, ties by position.
    Returns advantages (B,), 0 for images not chosen and summing to zero over a group, and chosen (B,) bool.
    """
    chosen = torch.zeros_like(group_index, dtype=torch.bool)
    for group in range(num_groups):
        rows = torch.nonzero(group_index == group).flatten()
        order = rows[advantages[rows].argsort(stable=True)]
        chosen[order[: keep // 2]] = True
        chosen[order[len(order) - keep // 2 :]] = True
    kept = advantages[chosen].cpu().double()
    own = group_index[chosen].cpu()
    centred = torch.zeros_like(advantages)
    centred[chosen] = (kept - group_mean(kept, own, num_groups)[own]).to(advantages)
    return centred, chosen


def unequal_groups(rewards: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
    """Groups whose rewards differ at all. rewards: (B,); group_index: (B,) int64; returns (num_groups,) bool."""
    return group_max(rewards, group_index, num_groups) > -group_max(-rewards, group_index, num_groups)


def best_worst_pairs(rewards: Tensor, group_index: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """The rows of each group's largest and smallest reward; where all are equal, the same row twice.

    rewards: (B,) float; group_index: (B,) int64, every group present; returns best, worst: (num_groups,) int64 rows.
    """
    elsewhere = group_index != torch.arange(num_groups, device=group_index.device)[:, None]  # (num_groups, B)
    best = rewards.masked_fill(elsewhere, -torch.inf).argmax(1)
    worst = rewards.masked_fill(elsewhere, torch.inf).argmin(1)
    return best, worst


def frac_reward_zero_std(rewards: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
    """The share of groups whose rewards are all equal: they teach nothing.

    rewards: (B,) float; group_index: (B,) int64; returns 0-dim fp32 in [0, 1].
    """
    return 1 - unequal_groups(rewards, group_index, num_groups).float().mean()
