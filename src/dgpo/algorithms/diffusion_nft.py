"""DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117): contrast a good and a bad direction around the sampling policy.

Rewards become probabilities of being good, `rho = 1/2 + clip(A / A_max, -1, 1) / 2`. At a noised image the policy
defines two velocities, `v+ = (1 - b) v_old + b v` and `v- = (1 + b) v_old - b v`: towards it and as far away from it.
Good images pull v+, bad ones v-, both as predictions of x0; with w = |x0_hat - x0|, its mean, without gradient:
    loss = (A_max / b) mean( rho (x0_hat+ - x0)^2 / w+ + (1 - rho) (x0_hat- - x0)^2 / w- ) + kl_coef mean (v - v_ref)^2
Rollouts are deterministic, by `old`, without guidance. Deviation: the noise levels, nearly all of the rollout's, come
in an order of their own for each group, in the authors' code for each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dgpo.algorithms.base import averaged, given, require
from dgpo.algorithms.forward_process import ForwardProcess, TSampling
from dgpo.algorithms.group_advantages import GroupAdvantages
from dgpo.core.ema import warmup_decay
from dgpo.core.flow import x0_from_velocity
from dgpo.core.groups import Reduce, identity
from dgpo.core.losses import self_normalized, velocity_kl
from dgpo.types import Rollout, TrainPoint, Velocities

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DiffusionNFT(ForwardProcess, GroupAdvantages):
    """The paper's constants, as set for GenEval."""

    mix: float = 1.0
    """b: how far v+ and v- lie from `old`, in units of the policy's own change; > 0, the paper's 0.1 to 1."""

    kl_coef: float = 1e-4
    """Weight of mean (v - v_ref)^2; >= 0, 0 is none."""

    std: Literal["group", "batch"] = "batch"
    """A = (r - group mean) / (std + 1e-4): the deviation of the group's rewards, or of the whole batch's."""

    t_sampling: TSampling = "grid"
    """Where t comes from: the rollout's own first noise levels, or a distribution on [t_min, t_max]."""

    trunc_steps: int = 8
    """For "grid": t is drawn without replacement from the rollout's first trunc_steps + 1 noise levels; >= 0."""

    num_points: int = 9
    """Draws of (t, noise) per update, all on the same images; >= 1."""

    shared_t: bool = False
    """One t for all groups at a draw; otherwise each group has its own."""

    shared_noise: bool = False
    """One noise for the images of a group at a draw; otherwise each image has its own."""

    old_decay_rate: float = 0.001
    """`old` is an average of the policy with decay min(old_max_decay, old_decay_rate * step); >= 0."""

    old_max_decay: float = 0.5
    """The largest decay of `old`; in [0, 1)."""

    def __post_init__(self) -> None:
        ForwardProcess.__post_init__(self)
        GroupAdvantages.__post_init__(self)
        require(self.mix > 0, f"mix={self.mix} leaves no difference to learn from; it must be above 0.")
        require(self.kl_coef >= 0, f"kl_coef={self.kl_coef} would reward leaving the reference; 0 switches the KL off.")
        require(self.old_decay_rate >= 0, f"old_decay_rate={self.old_decay_rate} must be 0 (`old` is a copy) or more.")
        require(
            0 <= self.old_max_decay < 1, f"old_max_decay={self.old_max_decay} must be in [0, 1); at 1 `old` freezes."
        )

    @property
    def needs(self) -> frozenset[str]:
        """`old`, around which the two velocities lie, and the reference for the KL."""
        return frozenset({"old", "ref"} if self.kl_coef > 0 else {"old"})

    @property
    def old_follows(self) -> Literal["step", "rollout"]:
        """`old` stays while its rollout is trained on."""
        return "rollout"

    def rollout_weights(self, iteration: int) -> Literal["policy", "old"]:
        """Always by `old`: the loss is about the images that it draws."""
        return "old"

    def old_decay(self, step: int) -> float:
        """Decay of `old`, counted from step 0: at first a copy."""
        return warmup_decay(step, self.old_decay_rate, self.old_max_decay)

    def loss(
        self, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce = identity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The two weighted regressions and the KL over these rows."""
        v, v_old = given(velocities, "policy"), given(velocities, "old")
        rho = 0.5 + (rollout.advantages / self.advantage_clip).clamp(-1, 1) / 2
        good = _x0_loss((1 - self.mix) * v_old + self.mix * v, point, rollout.x0)
        bad = _x0_loss((1 + self.mix) * v_old - self.mix * v, point, rollout.x0)
        loss = (self.advantage_clip / self.mix) * (rho * good + (1 - rho) * bad).mean()
        metrics = {"rho": rho, "moved": velocity_kl(v, v_old)}
        if "ref" in self.needs:
            metrics["kl"] = kl = velocity_kl(v, given(velocities, "ref"))
            loss = loss + self.kl_coef * kl.mean()
        return averaged(loss, metrics)


def _x0_loss(v: Tensor, point: TrainPoint, x0: Tensor) -> Tensor:
    """`mean (x0_hat - x0)^2 / w`, w = mean |x0_hat - x0| without gradient; returns (B,)."""
    return self_normalized(x0_from_velocity(point.x_t, v, point.t), x0)
