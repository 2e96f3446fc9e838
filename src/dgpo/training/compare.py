"""From the scores of a rollout to its advantages: facts of the whole batch, over all ranks.

An image that a reward dropped has NaN for its reward and leaves its group; a group left with fewer than two images is
compared with nothing. Neither trains, and the advantages of the images that stay are those of the smaller group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.config import Config
from dgpo.core.advantages import most_informative, normalized_sum, unequal_groups
from dgpo.rewards.base import RewardError
from dgpo.types import Rollout


class Compared(NamedTuple):
    """The images of all ranks that are compared with others of their group, in the order of the batch; C of them."""

    rewards: Tensor  # (C,) what the algorithm compares
    group_index: Tensor  # (C,) int64 in [0, num_groups)
    image_index: Tensor  # (C,) int64


def compared(rollout: Rollout, config: Config) -> Compared:
    """Rewards as they are, or the weighted sum of scores that are normalised within each group."""
    order = distributed.all_gather_rows(rollout.image_index).argsort()

    def whole(part: Tensor) -> Tensor:
        return distributed.all_gather_rows(part)[order]

    rewards, index, images = map(whole, (rollout.rewards, rollout.group_index, rollout.image_index))
    stay = ~rewards.isnan()
    stay &= torch.bincount(index[stay], minlength=rollout.num_groups)[index] > 1
    if config.reward_normalization == "group":
        scores = {name: whole(rollout.score(name).to(rewards.device))[stay] for name in config.rewards}
        rewards = normalized_sum(scores, config.rewards, index[stay], rollout.num_groups)
    else:
        rewards = rewards[stay]
    return Compared(rewards, index[stay], images[stay])


def with_advantages(rollout: Rollout, config: Config) -> Rollout:
    """Give the rollout its advantages, and choose the images that train."""
    algorithm = config.algorithm
    rewards, index, images = compared(rollout, config)
    if not len(rewards):
        raise distributed.shared(
            RewardError(
                f"no two images of a prompt got a reward in iteration {rollout.iteration + 1}: the rewards failed, and "
                "their policy drops what fails. Prompts and images are kept in failures/ of the run; mend and resume"
            )
        )
    groups, own = index.unique(return_inverse=True)
    advantages = algorithm.advantages(rewards, own, len(groups))
    trained = torch.ones_like(index, dtype=torch.bool)
    if config.train_images:
        advantages, trained = most_informative(advantages, own, len(groups), config.train_images)
    if config.drop_equal_groups:
        trained &= unequal_groups(rewards, own, len(groups))[own]
    if algorithm.skips_zero:
        trained &= advantages != 0
    sizes = torch.bincount(index[trained], minlength=rollout.num_groups)
    at = torch.searchsorted(images, rollout.image_index).clamp(max=len(images) - 1)
    stays = images[at] == rollout.image_index
    return rollout._replace(
        advantages=torch.where(stays, advantages[at], 0.0), trained=stays & trained[at], group_sizes=sizes
    )


def constant_scores(rollout: Rollout, config: Config) -> dict[str, float]:
    """Rewards that gave all images of a rollout, over all ranks, the same score, with it: nothing is learned from them.

    One image alone tells nothing.
    """
    constant = {}
    for name in config.rewards:
        scores = distributed.all_gather_rows(rollout.drawn_scores(name))
        scores = scores[~scores.isnan()]
        if len(scores) > 1 and scores.min() == scores.max():
            constant[name] = scores[0].item()
    return constant
