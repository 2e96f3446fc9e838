"""What several algorithms have in common: advantages within a group, and training on the forward process.

Dataclasses to derive from, so that each paper's file states its own defaults and what only it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dgpo.algorithms.base import Algorithm, require, require_known
from dgpo.core import seeds, timesteps
from dgpo.core.flow import interpolate, velocity_target
from dgpo.types import Rollout, TrainPoint
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor

TSampling = Literal["grid", "uniform", "logit_normal", "stratified", "linear"]


@dataclass(frozen=True, kw_only=True)
class ForwardProcess(Algorithm):
    """Trains at noised images, `x_t = (1 - t) x0 + t noise`, for t and noise of its own: no trajectory is kept."""

    num_points: int = 4
    """Draws of (t, noise) per update, all on the same images; >= 1."""

    t_sampling: TSampling = "grid"
    """Where t comes from: the rollout's own first noise levels, or a distribution on [t_min, t_max]."""

    trunc_steps: int = 6
    """For "grid": t is drawn without replacement from the rollout's first trunc_steps + 1 noise levels; >= 0."""

    t_min: float = 0.6
    """Smallest t trained, for draws other than "grid"; small t teaches the sampler's artefacts. In [0, t_max)."""

    t_max: float = 1.0
    """Largest t trained, for draws other than "grid"; 1 is pure noise. In (t_min, 1]."""

    shared_t: bool = True
    """One t for all groups at a draw; otherwise each group has its own."""

    shared_noise: bool = True
    """One noise for the images of a group at a draw; otherwise each image has its own."""

    def __post_init__(self) -> None:
        require_known(self, "t_sampling", get_args(TSampling))
        require(self.num_points >= 1, f"num_points={self.num_points} trains nothing; it must be at least 1.")
        require(self.trunc_steps >= 0, f"trunc_steps={self.trunc_steps} leaves no noise level; it must be at least 0.")
        require(
            self.t_sampling != "grid" or self.num_points <= self.trunc_steps + 1,
            f"num_points={self.num_points} cannot be drawn without replacement from trunc_steps + 1 = "
            f"{self.trunc_steps + 1} noise levels. Lower num_points, raise trunc_steps, or take t_sampling='uniform'.",
        )
        require(
            0 <= self.t_min < self.t_max <= 1,
            f"t_min={self.t_min}, t_max={self.t_max}: t is drawn between them; they need 0 <= t_min < t_max <= 1.",
        )

    def check_sampling(self, num_steps: int) -> None:
        """The grid must have the noise levels that are drawn from."""
        require(
            self.t_sampling != "grid" or self.trunc_steps < num_steps,
            f"algorithm.trunc_steps={self.trunc_steps} needs at least {self.trunc_steps + 1} noise levels, and "
            f"sampling.num_inference_steps={num_steps} has fewer. Lower trunc_steps, raise the steps, or use "
            "algorithm.t_sampling='uniform'",
        )

    def points_per_update(self, num_steps: int) -> int:
        """Any number of draws, whatever the rollout's steps."""
        return self.num_points

    def points(self, rollout: Rollout, generator: torch.Generator) -> Iterator[TrainPoint]:
        """`num_points` draws of (t, noise), keyed by group or image, so that any part of a batch gets its own again."""
        columns = 1 if self.shared_t else rollout.num_groups
        t_draws = torch.stack([self._draw_t(rollout, generator) for _ in range(columns)], 1)  # (num_points, columns)
        keys = torch.randint(2**62, (self.num_points,), generator=generator).tolist()
        for t, key in zip(t_draws, keys):
            t = t.expand(rollout.num_groups).to(rollout.x0.device)[rollout.group_index]  # (B,)
            noise = self._draw_noise(rollout, key)
            yield TrainPoint(interpolate(rollout.x0, noise, t), t, velocity_target(rollout.x0, noise))

    def _draw_t(self, rollout: Rollout, generator: torch.Generator) -> Tensor:
        """Returns (num_points,) fp32 on the CPU."""
        if self.t_sampling == "grid":
            return timesteps.grid_draws(rollout.sigmas, self.trunc_steps, self.num_points, generator)
        return timesteps.DRAWS[self.t_sampling](self.num_points, self.t_min, self.t_max, generator)

    def _draw_noise(self, rollout: Rollout, key: int) -> Tensor:
        """Returns (B, *latent), one noise per group or per image."""
        owners = rollout.group_index if self.shared_noise else rollout.image_index
        owner, place = owners.unique(return_inverse=True)
        streams = [seeds.generator(key, "train noise", number) for number in owner.tolist()]
        return seeds.randn_rows(streams, rollout.x0.shape[1:]).to(rollout.x0)[place]
