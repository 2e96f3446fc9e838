"""Rewards that need whole groups, for the groups whose images lie on several ranks.

Their images are gathered, and each group is scored on one rank, so that its reward sees what one process would see.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.data.prompts import PromptSet
from dgpo.rewards.combine import RewardSet
from dgpo.rewards.failures import joined
from dgpo.rewards.scoring import Scored
from dgpo.training.schedule import straddling


def on_several_ranks(groups: int, size: int) -> frozenset[int]:
    """Those of `groups` groups of `size` images, spread by `distributed.shard`, that have images on several ranks."""
    return straddling(groups, size, distributed.world_size())


def scored_whole(
    reward: RewardSet, scored_alone: Scored, split: frozenset[int], batch: PromptSet, mine: Tensor, images: Tensor
) -> Scored:
    """The scores of this rank's images with those that wait for a group in `split`; on all ranks together.

    scored_alone: without those; mine: (n, 2) int64, the group of each image, which is its prompt in `batch`, and its
    place there; images: (n, 3, H, W) on the CPU.
    """
    if not split or not reward.needing_groups:
        return scored_alone
    here = torch.isin(mine[:, 0], torch.tensor(sorted(split)))
    gathered = distributed.all_gather_rows(images[here])
    keys = distributed.all_gather_rows(mine[here])
    own = torch.isin(keys[:, 0], torch.tensor(sorted(split)[distributed.rank() :: distributed.world_size()]))
    rows = batch.subset(keys[own, 0].tolist())

    def scored() -> Scored:
        names = reward.needing_groups
        with reward.scoring(rows.prompts, rows.metadata, keys[own, 0], names=names, threads=False) as scoring:
            scoring.add(gathered[own])
            return scoring.result()

    whole = distributed.together(scored)
    parts = [([*range(len(mine))], scored_alone.scores)]
    for theirs, scores in distributed.gather_objects([(keys[own], whole.scores)]):
        same = (mine[:, None] == theirs).all(2)  # (n, m)
        to, source = same.nonzero().unbind(1)
        parts.append((to.tolist(), {name: score[source] for name, score in scores.items()}))
    return Scored(joined(len(mine), parts), scored_alone.failures + whole.failures, scored_alone.busy + whole.busy)
