"""Reinforce Adjoint Matching (Bergmeister et al. 2026, arXiv 2605.10759): a regression onto a corrected velocity.

Where the reward counts against a KL divergence from the reference, the best velocity differs from v_ref by how the
reward goes with the denoising error. RAM regresses the policy on an estimate of it (the paper's equation 17):
    loss = mean |v - stopgrad(v_ref + lambda A ((noise - x0) - v_old))|^2
    its gradient = 2 ((v - v_ref) + lambda A (v_old - (noise - x0))) grad v
a pull to v_ref, and a policy gradient of the denoising loss. With v for v_old, as in the equation, it is the gradient
of `|v - v_ref|^2 + lambda A d`: lambda times that of `A d` with a KL of weight 1 / lambda. The authors'
code has an average of the policy for v_old, which draws the images as well.
The paper's full text and code were not at hand: the equation, and lambda, p(t), the draws, std and the decay of `old`
are as public accounts of the authors' scripts/training_sd3 tell them, which agree.
Deviations: t is a group's own, theirs each image's; A is clipped, and so are gradients by the loop, theirs are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgpo.algorithms.base import averaged, given, require, require_known
from dgpo.algorithms.forward_process import ForwardProcess, TSampling
from dgpo.algorithms.group_advantages import GroupAdvantages
from dgpo.core.ema import warmup_decay
from dgpo.core.flow import expand
from dgpo.core.groups import Reduce, identity
from dgpo.core.losses import dsm_loss, velocity_kl
from dgpo.types import Rollout, TrainPoint, Velocities

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RAM(ForwardProcess, GroupAdvantages):
    """The authors' constants, as set for GenEval and text rendering."""

    reward_scale: float = 100.0
    """lambda: how much an advantage counts against the pull to the reference; > 0, the authors' 100 to 1000."""

    sampler_weights: Literal["old", "policy"] = "old"
    """Who draws the images and has the velocity of the correction: `old`, as in the authors' code, or the policy."""

    std: Literal["group", "batch"] = "batch"
    """A = (r - group mean) / (std + 1e-4): the deviation of the group's rewards, or of the whole batch's."""

    num_points: int = 8
    """Draws of (t, noise) per update, all on the same images; >= 1."""

    t_sampling: TSampling = "linear"
    """Where t comes from: the rollout's own first noise levels, or a distribution on [t_min, t_max]."""

    t_min: float = 0.0
    """Smallest t trained, for draws other than "grid". In [0, t_max)."""

    shared_t: bool = False
    """One t for all groups at a draw; otherwise each group has its own."""

    shared_noise: bool = False
    """One noise for the images of a group at a draw; otherwise each image has its own."""

    old_decay_rate: float = 0.01
    """`old` is an average of the policy with decay min(old_max_decay, old_decay_rate * step); >= 0."""

    old_max_decay: float = 0.9
    """The largest decay of `old`; in [0, 1)."""

    def __post_init__(self) -> None:
        ForwardProcess.__post_init__(self)
        GroupAdvantages.__post_init__(self)
        require_known(self, "sampler_weights", ("old", "policy"))
        require(
            self.reward_scale > 0, f"reward_scale={self.reward_scale} would ignore or reverse the reward; take 100."
        )
        require(self.old_decay_rate >= 0, f"old_decay_rate={self.old_decay_rate} must be 0 (`old` is a copy) or more.")
        require(
            0 <= self.old_max_decay < 1, f"old_max_decay={self.old_max_decay} must be in [0, 1); at 1 `old` freezes."
        )

    @property
    def needs(self) -> frozenset[str]:
        """The reference, and `old` where it drew the images."""
        return frozenset({"ref", "old"} if self.sampler_weights == "old" else {"ref"})

    @property
    def old_follows(self) -> Literal["step", "rollout"]:
        """`old` stays while its rollout is trained on."""
        return "rollout" if self.sampler_weights == "old" else "step"

    def rollout_weights(self, iteration: int) -> Literal["policy", "old"]:
        """Its own setting."""
        return self.sampler_weights

    def old_decay(self, step: int) -> float:
        """Decay of `old`, counted from step 0: at first a copy."""
        return warmup_decay(step, self.old_decay_rate, self.old_max_decay)

    def loss(
        self, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce = identity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean square distance to the corrected velocity over these rows."""
        v, v_ref = given(velocities, "policy"), given(velocities, "ref")
        correction = point.target - given(velocities, self.sampler_weights).detach()
        corrected = v_ref + self.reward_scale * expand(rollout.advantages, correction) * correction
        loss = dsm_loss(v, corrected.detach()).mean()
        return averaged(loss, {"dsm": dsm_loss(v, point.target), "kl": velocity_kl(v, v_ref)})
