"""Diffusion-DPO (Wallace et al. 2024, arXiv 2311.12908), online: each group's best image against its worst.

At one (t, noise) shared by the two, d the DSM loss:
    loss of a group = -log sigmoid(-beta / 2 ((d_best - d_ref_best) - (d_worst - d_ref_worst)))
It is DGPO with a group of two. The other images of a group are not trained on, nor are groups whose rewards are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgpo.algorithms.base import averaged, given, require
from dgpo.algorithms.forward_process import ForwardProcess, TSampling
from dgpo.core.advantages import best_worst_pairs
from dgpo.core.groups import Reduce, group_sum, identity
from dgpo.core.losses import dsm_loss
from dgpo.types import Rollout, TrainPoint, Velocities
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DiffusionDPO(ForwardProcess):
    """The paper's constants."""

    beta: float = 2000.0
    """How sharply pairs are told apart: large values forget those that are ordered right already; > 0."""

    t_sampling: TSampling = "uniform"
    """Where t comes from: the rollout's own first noise levels, or a distribution on [t_min, t_max]."""

    t_min: float = 0.0
    """Smallest t trained, for draws other than "grid". In [0, t_max)."""

    shared_t: bool = False
    """One t for all groups at a draw; otherwise each group has its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, f"beta={self.beta} would ignore or reverse the preference; it must be above 0.")
        require(self.shared_noise, "shared_noise=False: the two images of a pair are compared at one noise; use True.")

    @property
    def needs(self) -> frozenset[str]:
        """The frozen reference."""
        return frozenset({"ref"})

    @property
    def couples_group(self) -> bool:
        """The two images of a pair."""
        return True

    @property
    def skips_zero(self) -> bool:
        """Only pairs are trained."""
        return True

    def trained_images(self, group_size: int) -> int:
        """The best and the worst."""
        return 2

    def advantages(self, rewards: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
        """1 for a group's best image, -1 for its worst, 0 for others and where all are equal; returns (B,)."""
        best, worst = best_worst_pairs(rewards, group_index, num_groups)
        advantages = torch.zeros_like(rewards, dtype=torch.float32)
        advantages[best] += 1
        advantages[worst] -= 1
        return advantages

    def statistic(self, point: TrainPoint, velocities: Velocities, rollout: Rollout) -> Tensor:
        """These rows' share of d_best - d_ref_best - (d_worst - d_ref_worst); returns (num_groups,)."""
        with torch.no_grad():
            _, margin = self._margins(point, velocities, rollout)
            return group_sum(margin, rollout.group_index, rollout.num_groups)

    def loss(
        self, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce = identity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of `-log sigmoid` over these rows, both images of a pair having its loss.

        The value is the loss; its gradient, `beta / 2 sigmoid(beta / 2 margin)` times that of the margin, is written
        out, so that the two images of a pair may come in different micro-batches.
        """
        dsm, margin = self._margins(point, velocities, rollout)
        with torch.no_grad():
            total = group_sum(margin, rollout.group_index, rollout.num_groups, reduce)[rollout.group_index]
        slope = self.beta / 2 * torch.sigmoid(self.beta / 2 * total)
        value = -torch.nn.functional.logsigmoid(-self.beta / 2 * total)
        terms = 2 * slope * (margin - margin.detach())  # 0, with the gradient; 2, as two rows share a pair's margin
        loss = (terms + value).mean()
        return averaged(loss, {"dsm": dsm, "pair_weight": slope / (self.beta / 2), "ordered": (total < 0).float()})

    def _margins(self, point: TrainPoint, velocities: Velocities, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """dsm and A (d - d_ref), whose sum over a pair is the margin; each (B,)."""
        dsm = dsm_loss(given(velocities, "policy"), point.target)
        return dsm, rollout.advantages * (dsm - dsm_loss(given(velocities, "ref"), point.target).detach())
