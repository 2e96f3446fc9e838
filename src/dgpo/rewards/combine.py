"""Several rewards at once: every score is kept, their weighted sum is what the policy is trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.base import Reward, call_reward, check_metadata, resolve


class RewardSet:
    """The rewards of `weights`, each a key of `functions` or a name that `resolve` knows.

    `watched` names are computed and reported, and weigh nothing. Where a reward returns a dict, its first entry is the
    score that is weighted, under the reward's name; the others are reported as `name/key`. `save_failures_to` is the
    folder that keeps the prompt and image on which a reward fails.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        functions: Mapping[str, Reward] | None = None,
        *,
        watched: Iterable[str] = (),
        save_failures_to: Path | None = None,
    ) -> None:
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise UserError(f"the weight of the reward {name!r} is {weight}; it must be a finite number")
        functions = functions or {}
        self.weights = dict(weights)
        self.rewards = {name: functions.get(name) or resolve(name) for name in dict.fromkeys([*weights, *watched])}
        self.save_failures_to = save_failures_to

    def check_metadata(self, metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuses a run, before it starts, whose prompts lack what a reward reads. metadata: one dict a prompt."""
        for reward in self.rewards.values():
            check_metadata(reward, metadata)

    def __call__(
        self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """images (B, 3, H, W) float in [0, 1] -> scores {name: (B,)}, rewards (B,) their weighted sum; fp32, CPU."""
        images = images.detach().float().cpu()
        scores: dict[str, Tensor] = {}
        for name, reward in self.rewards.items():
            scores |= call_reward(name, reward, images, prompts, metadata, self.save_failures_to)
        rewards = sum((weight * scores[name] for name, weight in self.weights.items()), torch.zeros(len(prompts)))
        return scores, rewards
