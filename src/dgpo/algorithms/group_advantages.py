"""Advantages within a group: a reward counts by how far it is above or below those of its prompt (GRPO)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgpo.algorithms.base import Algorithm, require, require_known
from dgpo.core.advantages import group_advantages

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GroupAdvantages(Algorithm):
    """Rewards are compared within the group of their prompt."""

    std: Literal["group", "batch"] = "group"
    """A = (r - group mean) / (std + 1e-4): the deviation of the group's rewards, or of the whole batch's."""

    advantage_clip: float = 5.0
    """A is clipped to [-advantage_clip, advantage_clip]; > 0."""

    def __post_init__(self) -> None:
        require_known(self, "std", ("group", "batch"))
        require(self.advantage_clip > 0, f"advantage_clip={self.advantage_clip} would remove every advantage; use 5.")

    def advantages(self, rewards: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
        """rewards: (B,) of the whole batch; group_index: (B,) int64; returns (B,), sum 0 in a group but for clips."""
        return group_advantages(rewards, group_index, num_groups, self.std, self.advantage_clip)
