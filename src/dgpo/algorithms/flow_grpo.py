"""Flow-GRPO (Liu et al. 2025, arXiv 2505.05470): policy gradient on a stochastic sampler.

The rollout's ODE becomes an SDE of the same marginals, so that every step has a Gaussian density. Each step is then an
action of PPO: with `ratio = exp(log p - log p of the rollout)`, both averaged over latent elements,
    loss = mean over steps of max(-A ratio, -A clip(ratio, 1 - c, 1 + c)) + kl_coef (mean - mean_ref)^2 / (2 s^2)
with s the rate of noise, as in the authors' code: the variance leaves out the length of the step.
The KL of the transition's two Gaussians divides by `std^2 = s^2 |dt|` and is `1 / |dt|` times as much, step by step:
`kl="transition"`. Training is guided as the rollout was. Variants by settings: noise and training on a window of steps
only (Flow-GRPO-Fast; MixGRPO, arXiv 2507.21802), a constant rate of noise (DanceGRPO, arXiv 2505.07818), steps of
Coefficients-Preserving Sampling (CPS, arXiv 2509.05952), with which the authors' fast configs draw: its log p is
-(x_next - mean)^2 there, without the variance, and its KL has the variance of the step.
Deviations: the steps that are not trained have no noise, where theirs has noise to the end; the unconditional velocity
has its gradient under guidance, where some versions of theirs detach it; near t = 1, where the rate is infinite, see
`core/solvers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dgpo.algorithms.base import averaged, given, require, require_known
from dgpo.algorithms.group_advantages import GroupAdvantages
from dgpo.core.flow import expand
from dgpo.core.groups import Reduce, identity
from dgpo.core.losses import clip_mask, clipped_surrogate, gaussian_kl
from dgpo.core.solvers import Noise, sde_moments, step_log_prob
from dgpo.types import Rollout, Sde, TrainPoint, Velocities
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor

Kl = Literal["authors", "transition"]
SdeType = Literal["sde", "cps"]


@dataclass(frozen=True, kw_only=True)
class FlowGRPO(GroupAdvantages):
    """The paper's constants for SD3.5; the defaults train every step but the last."""

    noise_level: float = 0.7
    """a in the rate of noise, a sqrt(t / (1 - t)), or the rate itself; > 0. In cps a share of the noise: at most 1."""

    sde_type: SdeType = "sde"
    """The stochastic step: the paper's SDE, or Coefficients-Preserving Sampling, which leaves no noise in images."""

    constant_noise: bool = False
    """The rate of noise is noise_level at every t, as in DanceGRPO."""

    clip_range: float = 1e-4
    """c: no gradient where the ratio has left [1 - c, 1 + c] in the advantage's direction; > 0."""

    kl_coef: float = 0.04
    """Weight of the KL divergence from the frozen reference, per step; >= 0, 0 is none."""

    kl: Kl = "authors"
    """Its variance: s^2, the authors', or s^2 |dt|, the transition's own, which weighs a short step more."""

    std: Literal["group", "batch"] = "batch"
    """A = (r - group mean) / (std + 1e-4): the deviation of the group's rewards, or of the whole batch's."""

    timestep_fraction: float = 0.99
    """The share of the steps, from the noisiest, that may have noise and be trained, rounded down; in (0, 1]."""

    window: int | None = None
    """Only so many steps in a row have noise and are trained, Euler's the others; None: all of the share above."""

    window_shift_every: int = 0
    """The window moves on by one step every so many iterations, from the noisiest; 0: it is drawn anew each time."""

    window_end: int | None = None
    """The last step that a drawn window may hold, counted from 1; None: any of the share above."""

    guided: bool = True
    """Train with the guidance of the rollout, so that the density is the one that was sampled from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, "kl", get_args(Kl))
        require_known(self, "sde_type", get_args(SdeType))
        require(
            self.noise_level > 0,
            f"noise_level={self.noise_level} makes the sampler deterministic: its steps have no density, and there is "
            "no policy gradient. Take 0.7, or an algorithm for deterministic samplers, such as dgpo.",
        )
        require(
            self.sde_type == "sde" or self.noise_level <= 1,
            f"noise_level={self.noise_level} is the share of noise that sde_type=cps draws anew; it must be at most 1, "
            "0.8 is its authors'",
        )
        require(
            self.sde_type == "sde" or not self.constant_noise,
            "constant_noise=True is a rate of the SDE's noise, and sde_type=cps has none; take one of the two",
        )
        require(self.clip_range > 0, f"clip_range={self.clip_range} would clip every step; it must be above 0.")
        require(self.kl_coef >= 0, f"kl_coef={self.kl_coef} would reward leaving the reference; 0 switches the KL off.")
        require(
            0 < self.timestep_fraction <= 1,
            f"timestep_fraction={self.timestep_fraction} is the share of steps that train; it must be in (0, 1].",
        )
        require(self.window is None or self.window >= 1, f"window={self.window} trains no step; use 1 to 4, or None.")
        require(
            self.window_shift_every >= 0,
            f"window_shift_every={self.window_shift_every} counts iterations; 0 draws the window anew each time.",
        )
        require(
            self.window_shift_every == 0 or self.window is not None,
            f"window_shift_every={self.window_shift_every} moves a window, and window=None has none; give its length, "
            "1 to 4, or take window_shift_every=0",
        )
        require(
            self.window_shift_every == 0 or self.window_end is None,
            f"window_end={self.window_end} bounds windows that are drawn, and window_shift_every="
            f"{self.window_shift_every} moves one; take one of the two",
        )
        require(
            self.window_end is None or self.window is not None,
            f"window_end={self.window_end} bounds a window, and window=None has none; give its length, 1 to 4, or take "
            "window_end=None",
        )
        require(
            self.window is None or self.window_end is None or self.window_end >= self.window,
            f"window_end={self.window_end} leaves no room for window={self.window}; raise it, or use None.",
        )

    @property
    def needs(self) -> frozenset[str]:
        """The reference, for the KL. The old policy is remembered by the rollout's log-probs."""
        return frozenset({"ref"} if self.kl_coef > 0 else ())

    def policy_guidance(self, rollout_scale: float) -> float:
        """As in the rollout, or none."""
        return rollout_scale if self.guided else 1.0

    def ref_guidance(self, rollout_scale: float) -> float:
        """As the policy's: the KL compares the two as samplers."""
        return self.policy_guidance(rollout_scale)

    def check_sampling(self, num_steps: int) -> None:
        """There must be a step to train, and the window must fit."""
        room = self._trainable(num_steps)
        require(
            room >= 1,
            f"algorithm.timestep_fraction={self.timestep_fraction} of sampling.num_inference_steps={num_steps} leaves "
            "no step to train; raise one of them",
        )
        longest = min(room, self.window_end or room)
        require(
            self.sde_type == "sde" or longest < num_steps,
            f"algorithm.timestep_fraction={self.timestep_fraction} may train the last of sampling.num_inference_steps="
            f"{num_steps}, and the last step of sde_type=cps has no noise; take timestep_fraction=0.99",
        )
        require(
            self.window is None or self.window <= longest,
            f"algorithm.window={self.window} is longer than the {longest} steps it may lie in, of "
            f"sampling.num_inference_steps={num_steps}; shorten it, or take more steps",
        )

    def sampler(self, iteration: int, num_steps: int, generator: torch.Generator) -> Sde:
        """Noise at the steps that train."""
        noise: Noise = "constant" if self.constant_noise else self.sde_type
        return Sde(self.noise_level, noise, self._window(iteration, num_steps, generator))

    def points_per_update(self, num_steps: int) -> int:
        """One for every step with noise."""
        return self.window or self._trainable(num_steps)

    def points(self, rollout: Rollout, generator: torch.Generator) -> Iterator[TrainPoint]:
        """The rollout's own stochastic steps."""
        path = _trajectory(rollout)
        for step in path.sde.window:
            t, t_next = (sigma.expand(len(rollout.x0)) for sigma in rollout.sigmas[step : step + 2])
            yield TrainPoint(path.latents[:, step], t, path.latents[:, step + 1], t_next, path.log_probs[:, step])

    def loss(
        self, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce = identity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's clipped loss of one step, and its KL, over these rows."""
        assert point.log_prob is not None, "a point of `points`"
        sde = _trajectory(rollout).sde
        mean, std = _moments(point, given(velocities, "policy"), sde)
        ratio = torch.exp(step_log_prob(point.target, mean, std, sde.noise) - point.log_prob)
        advantages = rollout.advantages
        loss = clipped_surrogate(ratio, advantages, self.clip_range).mean()
        clipped = clip_mask(ratio, advantages, self.clip_range)
        metrics = {"ratio": ratio, "clip_fraction": clipped, "approx_kl": (ratio - 1).square() / 2}
        if "ref" in self.needs:
            mean_ref, _ = _moments(point, given(velocities, "ref"), sde)
            metrics["kl"] = kl = gaussian_kl(mean, mean_ref, self._kl_deviation(point, std, sde))
            loss = loss + self.kl_coef * kl.mean()
        return averaged(loss, metrics)

    def _kl_deviation(self, point: TrainPoint, std: Tensor, sde: Sde) -> Tensor:
        """std or, without the length of the step, s; returns (B, 1, ..., 1). CPS has no length in its std."""
        assert point.t_next is not None, "a point of `points`"
        if self.kl == "transition" or sde.noise == "cps":
            return std
        return std / expand(point.t - point.t_next, std).sqrt()

    def _trainable(self, num_steps: int) -> int:
        return int(num_steps * self.timestep_fraction)

    def _window(self, iteration: int, num_steps: int, generator: torch.Generator) -> range:
        """The steps with noise."""
        room = self._trainable(num_steps)
        if self.window is None:
            return range(room)
        if self.window_shift_every:
            places = room - self.window + 1
            start = iteration // self.window_shift_every % places
        else:
            places = min(room, self.window_end or room) - self.window + 1
            start = int(torch.randint(places, (), generator=generator))
        return range(start, start + self.window)


def _moments(point: TrainPoint, v: Tensor, sde: Sde) -> tuple[Tensor, Tensor]:
    """Mean (B, *latent) and deviation (B, 1, ..., 1) of the step under a velocity."""
    assert point.t_next is not None, "a point of `points`"
    return sde_moments(point.x_t, v, point.t, point.t_next, sde.noise_level, sde.noise)


def _trajectory(rollout: Rollout):
    if rollout.trajectory is None:
        raise ValueError("Flow-GRPO trains on the steps of a stochastic rollout, and this one kept no trajectory")
    return rollout.trajectory
