"""Centered Reward Distillation (Zhu et al. 2026, arXiv 2603.14128): make the model's own reward equal the given one.

Under reward maximisation against a KL divergence from a policy `old`, the best policy has `r = beta log p / p_old + c`
with the same unknown c for all images of a prompt. It cancels in differences from the group's mean, and the ELBO turns
log-likelihoods into DSM losses d. With the implicit reward rho and the external one a = A / (2 A_max):
    rho_i = beta (d_old_i - d_i)
    loss of a group = A_max / beta  mean_i( ((rho_i - mean rho) - (a_i - mean a))^2 )
    its gradient    = -2 A_max mean_i( ((rho_i - mean rho) - (a_i - mean a)) grad d_i )
The residuals of a group sum to 0, so that the gradient of `mean rho` drops out: it is the true gradient although the
mean carries none, and groups may be spread over micro-batches. At v = v_old it is that of `mean_i A_i d_i`.
Theirs as well: d is divided by the mean absolute error, without gradient; `old` moves while another policy samples;
the KL is to a guided reference, `kl_i (v - v_ref)^2`, with kl_i rising from 1e-4 to kl_coef with the advantage.
The paper's full text was not at hand: the constants are those of the authors' trainer in Flow-Factory (`crd`), which
names its table 3, for text rendering. Deviations: the policy samples, where theirs is an average of it that is a copy
for 75 steps and then slows down; the mean is that of the prompt, there of whatever is gathered; t is a group's own,
theirs each image's, nine noise levels once where they draw 20 times; one optimizer step per rollout, theirs two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgpo.algorithms.base import averaged, given, require
from dgpo.algorithms.forward_process import ForwardProcess
from dgpo.algorithms.group_advantages import GroupAdvantages
from dgpo.core.groups import Reduce, group_sum, identity
from dgpo.core.guidance import require_guidance
from dgpo.core.losses import dsm_loss, self_normalized, velocity_kl
from dgpo.types import Rollout, TrainPoint, Velocities
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_KL = 1e-4


@dataclass(frozen=True, kw_only=True)
class CRD(ForwardProcess, GroupAdvantages):
    """The authors' constants, as set for text rendering."""

    beta: float = 1.0
    """In rho = beta (d_old - d): the smaller, the further d must move for the same advantage; > 0."""

    self_normalized: bool = True
    """Divide d by the mean absolute error of its own velocity, without gradient; otherwise d is the DSM loss."""

    kl_coef: float = 0.1
    """Weight of mean (v - v_ref)^2; >= 0, 0 is none."""

    adaptive_kl: bool = True
    """The weight rises with the advantage, from 1e-4 where A = -advantage_clip to kl_coef; else it is kl_coef."""

    ref_guidance_scale: float = 4.5
    """Classifier-free guidance of the reference in the KL; >= 1, 1 is none."""

    std: Literal["group", "batch"] = "batch"
    """A = (r - group mean) / (std + 1e-4): the deviation of the group's rewards, or of the whole batch's."""

    trunc_steps: int = 8
    """For "grid": t is drawn without replacement from the rollout's first trunc_steps + 1 noise levels; >= 0."""

    num_points: int = 9
    """Draws of (t, noise) per update, all on the same images; >= 1."""

    shared_t: bool = False
    """One t for all groups at a draw; otherwise each group has its own."""

    shared_noise: bool = False
    """One noise for the images of a group at a draw; otherwise each image has its own."""

    old_first_decay: float = 0.25
    """`old` is an average with decay min(old_max_decay, old_first_decay + old_decay_rate * step); in [0, 1)."""

    old_decay_rate: float = 0.005
    """How fast the decay of `old` grows; >= 0."""

    old_max_decay: float = 0.999
    """The largest decay of `old`; in [0, 1)."""

    def __post_init__(self) -> None:
        ForwardProcess.__post_init__(self)
        GroupAdvantages.__post_init__(self)
        require(self.beta > 0, f"beta={self.beta} would ignore or reverse the reward; it must be above 0.")
        require(self.kl_coef >= 0, f"kl_coef={self.kl_coef} would reward leaving the reference; 0 switches the KL off.")
        require_guidance("ref_guidance_scale", self.ref_guidance_scale)
        require(
            self.old_decay_rate >= 0, f"old_decay_rate={self.old_decay_rate} would let `old` catch up; use 0 or more."
        )
        for name in ("old_first_decay", "old_max_decay"):
            decay = getattr(self, name)
            require(0 <= decay < 1, f"{name}={decay} must be in [0, 1); at 1 `old` freezes.")

    @property
    def needs(self) -> frozenset[str]:
        """`old`, from which the implicit reward is measured, and the reference for the KL."""
        return frozenset({"old", "ref"} if self.kl_coef > 0 else {"old"})

    @property
    def couples_group(self) -> bool:
        """Rewards are compared with their means over a whole group."""
        return True

    @property
    def old_follows(self) -> Literal["step", "rollout"]:
        """`old` stays while a rollout is trained on."""
        return "rollout"

    def ref_guidance(self, rollout_scale: float) -> float:
        """Its own setting: the policy learns without guidance what the reference does with it."""
        return self.ref_guidance_scale

    def old_decay(self, step: int) -> float:
        """Decay of `old`, counted from step 0: never a copy, or there would be nothing to measure from."""
        return min(self.old_max_decay, self.old_first_decay + self.old_decay_rate * step)

    def statistic(self, point: TrainPoint, velocities: Velocities, rollout: Rollout) -> Tensor:
        """These rows' share of sum_i (rho_i - a_i); returns (num_groups,)."""
        with torch.no_grad():
            excess = self._rho(point, velocities) - self._reward(rollout)
            return group_sum(excess, rollout.group_index, rollout.num_groups)

    def loss(
        self, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce = identity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean square of how far the centred implicit rewards are from the given ones, and the KL, over these rows.

        The means over groups carry no gradient, which changes nothing: see above.
        """
        v, reward = given(velocities, "policy"), self._reward(rollout)
        rho = self._rho(point, velocities)
        excess = rho - reward
        total = group_sum(excess.detach(), rollout.group_index, rollout.num_groups, reduce)
        mean = (total / rollout.group_sizes.clamp(min=1))[rollout.group_index]  # (B,)
        misfit = (excess - mean).square()
        loss = self.advantage_clip / self.beta * misfit.mean()
        metrics = {"dsm": dsm_loss(v, point.target), "implicit_reward": rho, "misfit": misfit}
        if "ref" in self.needs:
            metrics["kl"] = kl = velocity_kl(v, given(velocities, "ref"))
            loss = loss + (self._kl_weight(reward) * kl).mean()
        return averaged(loss, metrics)

    def _reward(self, rollout: Rollout) -> Tensor:
        """a: the external reward; returns (B,) in [-1/2, 1/2] but for advantages that were centred anew."""
        return rollout.advantages / (2 * self.advantage_clip)

    def _rho(self, point: TrainPoint, velocities: Velocities) -> Tensor:
        """The implicit reward; returns (B,)."""
        error = self._error(given(velocities, "policy"), point.target)
        return self.beta * (self._error(given(velocities, "old"), point.target).detach() - error)

    def _error(self, v: Tensor, target: Tensor) -> Tensor:
        """d; returns (B,) >= 0."""
        return (self_normalized if self.self_normalized else dsm_loss)(v, target)

    def _kl_weight(self, reward: Tensor) -> Tensor:
        """kl_i; returns (B,)."""
        least = min(SMALLEST_KL, self.kl_coef) if self.adaptive_kl else self.kl_coef
        return least + (self.kl_coef - least) * (reward + 0.5).clamp(0, 1)
