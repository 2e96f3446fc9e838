"""Several rewards at once: every score is kept, their weighted sum is what the policy is trained on.

A reward may be for prompts of some tags only: elsewhere its score is NaN and adds nothing to the sum. Where a reward
with weight dropped an image (failures.py), the sum is NaN: the image has no place in its group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.config import Config
from dgpo.errors import UserError
from dgpo.rewards.base import Reward, check_metadata, needs_group, resolve
from dgpo.rewards.failures import parse_policy
from dgpo.rewards.scoring import Scored, Scoring


class RewardSet:
    """The rewards of `weights`, each a key of `functions` or a name that `resolve` knows.

    `watched` names are computed and reported, and weigh nothing. Where a reward returns a dict, its first entry is the
    score that is weighted, under the reward's name; the others are reported as `name/key`. tags: name -> the values of
    metadata `tag` that a reward is for; failures: name -> its policy. `save_failures_to` is the folder that keeps the
    prompt and image on which a reward fails.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        functions: Mapping[str, Reward] | None = None,
        *,
        watched: Iterable[str] = (),
        tags: Mapping[str, Sequence[str]] | None = None,
        failures: Mapping[str, str] | None = None,
        save_failures_to: Path | None = None,
    ) -> None:
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise UserError(f"the weight of the reward {name!r} is {weight}; it must be a finite number")
        functions = functions or {}
        self.weights = dict(weights)
        self.rewards = {name: functions.get(name) or resolve(name) for name in dict.fromkeys([*weights, *watched])}
        self.tags = {name: tuple(known) for name, known in (tags or {}).items()}
        policies = {name: parse_policy(name, policy) for name, policy in (failures or {}).items()}
        self.policies = {name: policy for name, policy in policies.items() if name in self.rewards}
        self.save_failures_to = save_failures_to

    @classmethod
    def of(
        cls, config: Config, functions: Mapping[str, Reward] | None = None, *, watched: Iterable[str] = ()
    ) -> RewardSet:
        """The rewards of a config."""
        tags, failures = config.reward_tags, config.reward_failures
        return cls(config.rewards, functions, watched=watched, tags=tags, failures=failures)

    @property
    def needing_groups(self) -> list[str]:
        """The names of those that are called with whole groups."""
        return [name for name, reward in self.rewards.items() if needs_group(reward)]

    def applies(self, name: str, row: Mapping[str, Any]) -> bool:
        """Whether a reward is for the prompt with this metadata."""
        return name not in self.tags or row.get("tag") in self.tags[name]

    def for_all(self, score: str) -> bool:
        """Whether a score is for the prompts of all tags."""
        return not any(name in self.tags for name in self._owners(score))

    def missing(self, score: str, values: Tensor, metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """The images that should have this score, or `reward`, and were dropped. values: (B,); returns (B,) bool."""
        concerned = [all(self.applies(name, row) for name in self._owners(score)) for row in metadata]
        return values.isnan() & torch.tensor(concerned, dtype=torch.bool)

    def check_metadata(self, metadata: Sequence[Mapping[str, Any]]) -> None:
        """Refuses a run, before it starts, whose prompts lack what a reward reads, or a reward. One dict a prompt."""
        for name, reward in self.rewards.items():
            check_metadata(reward, [row if self.applies(name, row) else None for row in metadata])
        for index, row in enumerate(metadata):
            if not any(self.applies(name, row) for name in self.weights):
                raise UserError(
                    f"no reward is for prompt {index}: its tag is {row.get('tag')!r}, and reward_tags limits every one "
                    f"of {', '.join(self.weights)} to others. Add the tag, or a reward for all prompts"
                )

    def scoring(
        self,
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        group_index: Tensor,
        *,
        names: Sequence[str] | None = None,
        elsewhere: frozenset[int] = frozenset(),
        threads: bool = True,
    ) -> Scoring:
        """Scores images as they are made, by the rewards `names` or all; the other arguments are those of Scoring."""
        return Scoring(
            {name: reward for name, reward in self.rewards.items() if names is None or name in names},
            self.policies,
            self.applies,
            prompts,
            metadata,
            group_index,
            elsewhere=elsewhere,
            save_failures_to=self.save_failures_to,
            threads=threads,
        )

    def weighted(self, scores: Mapping[str, Tensor], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """rewards (B,): the weighted sum of the scores that apply; NaN for an image that one of them dropped."""
        rewards = torch.zeros(len(metadata))
        for name, weight in self.weights.items():
            applies = torch.tensor([self.applies(name, row) for row in metadata], dtype=torch.bool)
            rewards = rewards + (weight * scores[name]).where(applies, 0.0)
        return rewards

    def _owners(self, score: str) -> list[str]:
        """The reward that gives a score; none gives `reward`, the sum of all."""
        return [name for name in self.rewards if score == name or score.startswith(f"{name}/")]

    def __call__(
        self,
        images: Tensor,
        prompts: list[str],
        metadata: list[dict[str, Any]],
        group_index: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """images (B, 3, H, W) float in [0, 1] -> scores {name: (B,)}, rewards (B,) their weighted sum; fp32, CPU.

        group_index: (B,) int64; None: images of a prompt are a group.
        """
        if group_index is None:
            names = list(dict.fromkeys(prompts))
            group_index = torch.tensor([names.index(prompt) for prompt in prompts])
        scores = self.scored(images, prompts, metadata, group_index).scores
        return scores, self.weighted(scores, metadata)

    def scored(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]], group_index: Tensor
    ) -> Scored:
        """The same without the sum, and what it took: one call of each reward, one after the other."""
        with self.scoring(prompts, metadata, group_index, threads=False) as scoring:
            scoring.add(images)
            return scoring.result()
