"""Direct Group Preference Optimization (Luo, Hu, Tang; ICLR 2026, arXiv 2510.08425).

A group of images of one prompt has advantages A. DGPO maximises `log sigmoid(R(G+) - R(G-))`, the preference of
the good part of the group over the bad, each an |A|-weighted sum of implicit rewards `beta log p / p_ref`. The
weights of the two parts have equal sums, so the intractable log Z cancels, and the ELBO turns log-likelihoods into
DSM losses d:
    loss of a group = -log sigmoid(-s),   s = (beta / group_size) sum_i A_i (d_i - d_ref_i)
    its gradient    = sigmoid(s) (beta / group_size) sum_i A_i grad d_i
There is no policy gradient: rollouts come from a deterministic ODE solver, and any t is trained without a trajectory.
As in the authors' code the surrogate `mean_i stopgrad(sigmoid(s)) A_i d_i` drops the constant beta, which thus only
says how sharply groups already in order are switched off; `kl_coef` must be read on that scale. Theirs as well: t at
least t_min, noise shared by a group, images far from `old` clipped, and a reference that is frozen or, as in TDM-R1
(arXiv 2603.07700), `old`. Deviations: t is the sampler's exact sigma, where the authors round down to 1/1000; noise
does not depend on how images are spread over ranks; weights that nothing uses are not evaluated. Not theirs:
`self_normalized`, which weighs the DSM losses as CRD (arXiv 2603.14128) does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgpo.algorithms.base import averaged, given, require, require_known
from dgpo.algorithms.forward_process import ForwardProcess
from dgpo.algorithms.group_advantages import GroupAdvantages
from dgpo.core.ema import warmup_decay
from dgpo.core.groups import Reduce, group_size, group_sum, identity
from dgpo.core.guidance import require_guidance
from dgpo.core.losses import dsm_clip_mask, dsm_loss, self_normalized, velocity_kl
from dgpo.types import Rollout, TrainPoint, Velocities
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor


def dgpo_loss(dsm: Tensor, advantages: Tensor, weight: Tensor) -> Tensor:
    """DGPO's surrogate terms `stopgrad(sigmoid(s_group)) A_i d_i`; their mean is the loss.

    dsm: (B,) with gradient; advantages: (B,); weight: (B,) `group_weight` of each image's group; returns (B,).
    """
    return weight * advantages * dsm


def group_weight(
    dsm: Tensor,
    dsm_ref: Tensor,
    advantages: Tensor,
    group_index: Tensor,
    num_groups: int,
    beta: float,
    reduce: Reduce = identity,
    group_sizes: Tensor | None = None,
) -> Tensor:
    """`sigmoid(s)`: 1/2 where the policy orders a group as the reference does, towards 0 where it does better.

    dsm, dsm_ref, advantages: (B,); group_index: (B,) int64 in [0, num_groups); returns (num_groups,) in (0, 1).
    reduce: completes sums over groups, (num_groups,) -> (num_groups,), where these rows are not all;
    group_sizes: (num_groups,) images of each group in the whole batch, counted (and reduced) if not given.
    """
    if group_sizes is None:
        group_sizes = group_size(group_index, num_groups, reduce)
    total = group_sum(advantages * (dsm - dsm_ref).detach(), group_index, num_groups, reduce)
    return torch.sigmoid(beta * total / group_sizes.clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class DGPO(ForwardProcess, GroupAdvantages):
    """The paper's constants. The defaults are its mode with guided rollouts, as set for text rendering."""

    beta: float = 100.0
    """In s = beta / group_size * sum A (d - d_ref): how sharply groups in order are switched off; >= 0, 0 is never."""

    kl_coef: float = 0.02
    """Weight of mean (v - v_ref)^2, which holds the policy to the frozen reference; >= 0, 0 is none."""

    clip_range: float | None = 1e-2
    """c: with ratio = exp(d_old - d), no gradient if A > 0 and ratio > 1 + c, or A <= 0 and ratio < 1 - c; or None."""

    self_normalized: bool = False
    """d is the DSM loss over the mean absolute error of its own velocity, which carries no gradient, as in CRD."""

    reference: Literal["ref", "old"] = "ref"
    """Whose DSM loss is d_ref: the frozen pretrained weights, or `old`, which follows the policy."""

    ref_guidance_scale: float = 1.0
    """Classifier-free guidance of the frozen reference, in d_ref and the KL alike; >= 1, 1 is none."""

    std: Literal["group", "batch"] = "batch"
    """A = (r - group mean) / (std + 1e-4): the deviation of the group's rewards, or of the whole batch's."""

    sampling_switch: int = 200
    """Iterations whose rollouts the policy samples; after them `old` does. >= 0."""

    old_decay_rate: float = 0.001
    """`old` is an average of the policy with decay min(old_max_decay, old_decay_rate * step); >= 0."""

    old_max_decay: float = 0.3
    """The largest decay of `old`; in [0, 1)."""

    def __post_init__(self) -> None:
        ForwardProcess.__post_init__(self)
        GroupAdvantages.__post_init__(self)
        require_known(self, "reference", ("ref", "old"))
        require(self.beta >= 0, f"beta={self.beta} would switch off the wrong groups; 0 switches off none.")
        require(self.kl_coef >= 0, f"kl_coef={self.kl_coef} would reward leaving the reference; 0 switches the KL off.")
        require(
            self.clip_range is None or self.clip_range > 0,
            f"clip_range={self.clip_range} would clip every image; it must be above 0, or None for no clip.",
        )
        require_guidance("ref_guidance_scale", self.ref_guidance_scale)
        require(self.sampling_switch >= 0, f"sampling_switch={self.sampling_switch} counts iterations; use 0 or more.")
        require(self.old_decay_rate >= 0, f"old_decay_rate={self.old_decay_rate} must be 0 (`old` is a copy) or more.")
        require(
            0 <= self.old_max_decay < 1, f"old_max_decay={self.old_max_decay} must be in [0, 1); at 1 `old` freezes."
        )

    @property
    def needs(self) -> frozenset[str]:
        """The weight sets evaluated at a point: "ref" for the KL or d_ref, "old" for the clip or d_ref."""
        ref = self.kl_coef > 0 or (self.couples_group and self.reference == "ref")
        old = self.clip_range is not None or (self.couples_group and self.reference == "old")
        return frozenset(name for name, needed in (("ref", ref), ("old", old)) if needed)

    @property
    def couples_group(self) -> bool:
        """sigmoid(s) needs the sum over a whole group, unless beta = 0 makes it 1/2."""
        return self.beta > 0

    def rollout_weights(self, iteration: int) -> Literal["policy", "old"]:
        """Who samples the rollout of this iteration, counted from 0."""
        return "policy" if iteration < self.sampling_switch else "old"

    def ref_guidance(self, rollout_scale: float) -> float:
        """Its own setting: rollouts without guidance can be measured against a guided reference."""
        return self.ref_guidance_scale

    def old_decay(self, step: int) -> float:
        """Decay of `old` after this optimizer step, counted from 0: at first a copy."""
        return warmup_decay(step, self.old_decay_rate, self.old_max_decay)

    def statistic(self, point: TrainPoint, velocities: Velocities, rollout: Rollout) -> Tensor:
        """These rows' share of sum_i A_i (d_i - d_ref_i); returns (num_groups,)."""
        with torch.no_grad():
            v, v_ref = given(velocities, "policy"), given(velocities, self.reference)
            margin = self._error(v, point.target) - self._error(v_ref, point.target)
            return group_sum(rollout.advantages * margin, rollout.group_index, rollout.num_groups)

    def loss(
        self, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce = identity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`mean_i sigmoid(s_group) A_i d_i + kl_coef mean_i (v - v_ref)^2` over these rows, and its metrics."""
        v, advantages = given(velocities, "policy"), rollout.advantages
        d, dsm = self._error(v, point.target), dsm_loss(v, point.target)
        weight = self._group_weight(d, point, velocities, rollout, reduce)
        clipped = self._clipped(d, point, velocities, advantages)
        loss = dgpo_loss(torch.where(clipped, d.detach(), d), advantages, weight).mean()
        metrics = {"dsm": dsm, "group_weight": weight, "clip_fraction": clipped}
        if self.couples_group:
            metrics["dsm_ref"] = dsm_loss(given(velocities, self.reference), point.target)
        if "ref" in self.needs:
            metrics["kl"] = kl = velocity_kl(v, given(velocities, "ref"))
            loss = loss + self.kl_coef * kl.mean()
        return averaged(loss, metrics)

    def _group_weight(
        self, d: Tensor, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce
    ) -> Tensor:
        """sigmoid(s) of each image's group; returns (B,) without gradient."""
        if not self.couples_group:
            return torch.full_like(d.detach(), 0.5)
        d_ref = self._error(given(velocities, self.reference), point.target)
        index, count, sizes = rollout.group_index, rollout.num_groups, rollout.group_sizes
        return group_weight(d, d_ref, rollout.advantages, index, count, self.beta, reduce, sizes)[index]

    def _error(self, v: Tensor, target: Tensor) -> Tensor:
        """d; returns (B,) >= 0."""
        return (self_normalized if self.self_normalized else dsm_loss)(v, target)

    def _clipped(self, d: Tensor, point: TrainPoint, velocities: Velocities, advantages: Tensor) -> Tensor:
        """Images whose d gives no gradient; returns (B,) bool."""
        if self.clip_range is None:
            return torch.zeros_like(d, dtype=torch.bool)
        d_old = self._error(given(velocities, "old"), point.target)
        return dsm_clip_mask(d, d_old, advantages, self.clip_range)
