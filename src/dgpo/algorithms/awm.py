"""Advantage Weighted Matching (Xue et al. 2025, arXiv 2509.25050): pretraining's own loss, weighted by the advantage.

With a bounded DSM loss for the log-likelihood, `log p = -(t / power) d^power`, d at one (t, noise), the policy gradient
of PPO needs no stochastic sampler:
    ratio = exp(log p - log p_old)
    loss  = mean of max(-A ratio, -A clip(ratio, 1 - c, 1 + c)) + kl_coef mean (v - v_ref)^2
On the first update of a rollout the ratio is 1 and the gradient is that of `-A log p`. A is divided by its clip, which
makes it at most 1. Deviations: t is drawn from even parts of a range, where the authors draw grid values of a 14-step
sampler; their second pull, towards an average of the policy, is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgpo.algorithms.base import averaged, given, require
from dgpo.algorithms.forward_process import ForwardProcess, TSampling
from dgpo.algorithms.group_advantages import GroupAdvantages
from dgpo.core.groups import Reduce, identity
from dgpo.core.losses import clip_mask, clipped_surrogate, dsm_loss, velocity_kl
from dgpo.types import Rollout, TrainPoint, Velocities
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_DSM = 1e-10


@dataclass(frozen=True, kw_only=True)
class AWM(ForwardProcess, GroupAdvantages):
    """The paper's constants."""

    power: float = 0.25
    """Exponent of d in the log-likelihood; 1 is the DSM loss itself, less is moved less by hard images; in (0, 1]."""

    weight_by_t: bool = True
    """Whether the log-likelihood is multiplied by t."""

    clip_range: float = 1.0
    """c: no gradient where the ratio has left [1 - c, 1 + c] in the advantage's direction; > 0."""

    kl_coef: float = 0.003
    """Weight of mean (v - v_ref)^2; >= 0, 0 is none."""

    std: Literal["group", "batch"] = "batch"
    """A = (r - group mean) / (std + 1e-4): the deviation of the group's rewards, or of the whole batch's."""

    num_points: int = 6
    """Draws of (t, noise) per update, all on the same images; >= 1."""

    t_sampling: TSampling = "stratified"
    """Where t comes from: the rollout's own first noise levels, or a distribution on [t_min, t_max]."""

    t_min: float = 0.35
    """Smallest t trained, for draws other than "grid". In [0, t_max)."""

    t_max: float = 0.98
    """Largest t trained, for draws other than "grid"; 1 is pure noise. In (t_min, 1]."""

    shared_noise: bool = False
    """One noise for the images of a group at a draw; otherwise each image has its own."""

    def __post_init__(self) -> None:
        ForwardProcess.__post_init__(self)
        GroupAdvantages.__post_init__(self)
        require(0 < self.power <= 1, f"power={self.power} must be in (0, 1]; 1 is the DSM loss itself.")
        require(self.clip_range > 0, f"clip_range={self.clip_range} would clip every image; it must be above 0.")
        require(self.kl_coef >= 0, f"kl_coef={self.kl_coef} would reward leaving the reference; 0 switches the KL off.")

    @property
    def needs(self) -> frozenset[str]:
        """`old`, the policy that drew the rollout, and the reference for the KL."""
        return frozenset({"old", "ref"} if self.kl_coef > 0 else {"old"})

    @property
    def old_follows(self) -> Literal["step", "rollout"]:
        """`old` is the policy that drew the rollout, for all its updates."""
        return "rollout"

    def loss(
        self, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce = identity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's clipped loss with the DSM loss as log-likelihood, and the KL, over these rows."""
        v, advantages = given(velocities, "policy"), rollout.advantages / self.advantage_clip
        dsm, dsm_old = dsm_loss(v, point.target), dsm_loss(given(velocities, "old"), point.target)
        ratio = torch.exp(self._log_prob(dsm, point.t) - self._log_prob(dsm_old.detach(), point.t))
        loss = clipped_surrogate(ratio, advantages, self.clip_range).mean()
        clipped = clip_mask(ratio, advantages, self.clip_range)
        metrics = {"dsm": dsm, "ratio": ratio, "clip_fraction": clipped}
        if "ref" in self.needs:
            metrics["kl"] = kl = velocity_kl(v, given(velocities, "ref"))
            loss = loss + self.kl_coef * kl.mean()
        return averaged(loss, metrics)

    def _log_prob(self, dsm: Tensor, t: Tensor) -> Tensor:
        """Up to a constant. dsm, t: (B,); returns (B,)."""
        weight = t if self.weight_by_t else torch.ones_like(t)
        return -weight / self.power * (dsm + SMALLEST_DSM).pow(self.power)
