"""Several rewards at once: every score is kept, their weighted sum is what the policy is trained on.

A reward may be for prompts of some tags only: elsewhere its score is NaN and adds nothing to the sum. Where a reward
with weight dropped an image (failures.py), the sum is NaN: the image has no place in its group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.data.prompts import PromptSet
from dgpo.errors import UserError, did_you_mean
from dgpo.rewards.base import Reward, needs_group
from dgpo.rewards.failures import parse_policy
from dgpo.rewards.registry import resolve
from dgpo.rewards.rows import check_rows
from dgpo.rewards.scoring import Scored, Scoring


class RewardSet:
    """The rewards of `weights`, each a key of `functions` or a name that `resolve` knows.

    `watched` names are computed and reported, and weigh nothing. Where a reward returns a dict, its first entry is the
    score that is weighted, under the reward's name; the others are reported as `name/key`. tags: name -> the values of
    metadata `tag` that a reward is for; failures: name -> its policy. `save_failures_to` is the folder that keeps the
    prompt and image on which a reward fails. people: whether a person judges every prompt as well.
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
        people: bool = False,
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
        self._people = people

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

    def check(self, prompts: PromptSet) -> list[str]:
        """Refuse prompts that a reward cannot score, or that none is for. Returns doubts about others, as lines."""
        doubts = []
        for name, reward in self.rewards.items():
            rows = [index for index, row in enumerate(prompts.metadata) if self.applies(name, row)]
            doubts += check_rows(name, reward, prompts.subset(rows))
        for index, row in enumerate(prompts.metadata):
            if not self._people and not any(self.applies(name, row) for name in self.weights):
                raise UserError(
                    f"no reward is for {prompts.place(index)}: its tag is {row.get('tag')!r}, and reward_tags limits "
                    f"every one of {', '.join(self.weights)} to others. Add the tag, or a reward for all prompts"
                )
        return doubts

    def require_side(self, setting: str, side: int | None) -> None:
        """Refuse images of a size that a reward does not read. side: in pixels, by this setting; None: not known."""
        for name, reward in self.rewards.items():
            own = getattr(reward, "image_side", None)
            if own is not None and side not in (None, own):
                raise UserError(
                    f"{setting}={side}, and the reward {name!r} reads images of {own} x {own} pixels only; take "
                    f"{setting}={own}, or another reward"
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


def check_run(
    reward: RewardSet,
    eval_reward: RewardSet,
    prompts: PromptSet | None,
    eval_sets: Mapping[str, PromptSet],
    images_of: Callable[[str], int],
) -> list[str]:
    """Refuse a run that its prompts would stop, or that would score nothing: for `train`, its dry run and `dgpo plan`.

    prompts: those that train; None where a dataset brings its rewards
    images_of: name of an evaluation set -> its images per prompt
    Returns what may be scored otherwise than meant.
    """
    doubts = [] if prompts is None else [f"prompts: {doubt}" for doubt in reward.check(prompts)]
    for name, some in eval_sets.items():
        doubts += [f"eval_prompts {name}: {doubt}" for doubt in eval_reward.check(some)]
    _require_tags(reward, prompts, eval_sets)
    groups = eval_reward.needing_groups
    for name in eval_sets if groups else ():
        if images_of(name) < 2:
            raise UserError(
                f"eval_images_per_prompt={images_of(name)}, and {', '.join(groups)} compares the images of a prompt; "
                f"take 2 or more, also where eval_images gives {name} a number of its own"
            )
    return doubts


def _require_tags(reward: RewardSet, prompts: PromptSet | None, eval_sets: Mapping[str, PromptSet]) -> None:
    """Every tag of reward_tags is that of some prompt, and every reward that trains is for some prompt that trains."""
    sets = [*([] if prompts is None else [prompts]), *eval_sets.values()]
    known = {str(row["tag"]): None for some in sets for row in some.metadata if row.get("tag") is not None}
    for name, tags in reward.tags.items():
        for tag in tags if sets else ():
            if tag not in known:
                raise UserError(
                    f"reward_tags has {name}={tag}, and no prompt has the tag {tag!r}. {did_you_mean(tag, known)}"
                    if known
                    else f"reward_tags has {name}={tag}, and no prompt has a tag at all, in its metadata"
                )
        trained = [] if prompts is None else prompts.metadata
        if name in reward.weights and trained and not any(reward.applies(name, row) for row in trained):
            raise UserError(
                f"the reward {name!r} would train on nothing: no prompt that trains has one of its tags, "
                f"{', '.join(tags)}. Give such prompts, or move it to eval_rewards"
            )
