"""The bundles that travel through one iteration. Every field names its shape; B = num_groups * group_size."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo.core.solvers import Noise


def take(rows: Tensor, index: slice | Tensor) -> Tensor:
    """Some rows; `index` may lie on another device, for a rollout keeps its pictures and scores on the CPU."""
    return rows[index if isinstance(index, slice) else index.to(rows.device)]


class Sde(NamedTuple):
    """How a stochastic rollout is sampled: which of the grid's steps get noise, and how much."""

    noise_level: float  # > 0
    noise: Noise  # what noise_level is the level of
    window: range  # the steps with noise, counted from 0; Euler's elsewhere


class Trajectory(NamedTuple):
    """The stochastic sampler's path, kept only for policy-gradient algorithms."""

    latents: Tensor  # (B, S + 1, *latent) fp32, latents[:, 0] is the initial noise
    log_probs: Tensor  # (B, S) fp32, `step_log_prob` of each step
    sde: Sde

    def rows(self, index: slice | Tensor) -> Trajectory:
        """The same for only some images."""
        return Trajectory(self.latents[index], self.log_probs[index], self.sde)

    def cat(self, *others: Trajectory) -> Trajectory:
        """These rows, then those of other paths of the same sampler."""
        paths = (self, *others)
        latents, log_probs = ([getattr(path, name) for path in paths] for name in ("latents", "log_probs"))
        return Trajectory(torch.cat(latents), torch.cat(log_probs), self.sde)


class Replaced(NamedTuple):
    """Groups that taught nothing and gave way to groups of other prompts: what their images had earned."""

    equal: int  # of these groups, over all ranks, whose images were compared and all earned the same
    rewards: Tensor  # (n,) of the images on this rank; NaN for one that was dropped
    scores: dict[str, Tensor]  # name -> (n,) raw reward


class Rollout(NamedTuple):
    """One collected batch: what was sampled for which prompt, and what it earned. Rows are images."""

    iteration: int
    num_groups: int
    group_sizes: Tensor  # (num_groups,) images of each group that train, in the whole batch
    prompts: list[str]  # B
    metadata: list[dict[str, Any]]  # B
    group_index: Tensor  # (B,) int64 in [0, num_groups): the prompt an image belongs to
    image_index: Tensor  # (B,) int64: the image's place in the whole batch, over all ranks
    cond: Any  # B rows of the model's own conditioning
    sigmas: Tensor  # (S + 1,) fp32, descending, the grid the rollout used, trailing 0
    guidance_scale: float  # the rollout's classifier-free guidance, 1.0 is none
    x0: Tensor  # (B, *latent) fp32
    images: Tensor  # (B, 3, H, W) float in [0, 1]; (B, 0) where the rollout was read from a dataset
    scores: dict[str, Tensor]  # name -> (B,) raw reward; NaN where it does not apply, or dropped the image
    rewards: Tensor  # (B,) weighted sum; NaN for an image that was dropped
    advantages: Tensor  # (B,) sums to zero over a group, but for clipped ones
    trained: Tensor  # (B,) bool: whether an update spends anything on the image
    trajectory: Trajectory | None = None
    drawn: int = 0  # images that were sampled for it, over all ranks, with those of groups that were drawn again
    failures: Counter[str] | None = None  # on this rank: retries/REWARD calls repeated, dropped/REWARD images
    replaced: tuple[Replaced, ...] = ()  # one for each time that groups were drawn again

    def rows(self, index: slice | Tensor) -> Rollout:
        """The same rollout with only some images. What is said of groups keeps its meaning for the whole batch."""
        if not isinstance(index, slice) and index.dtype == torch.bool:
            index = index.nonzero().flatten()  # rows by number are what every model's conditioning understands
        numbers = take(torch.arange(len(self.prompts)), index).tolist()
        return self._replace(
            prompts=[self.prompts[i] for i in numbers],
            metadata=[self.metadata[i] for i in numbers],
            cond=self.cond[index],
            scores={name: take(score, index) for name, score in self.scores.items()},
            trajectory=self.trajectory and self.trajectory.rows(index),
            **{name: take(getattr(self, name), index) for name in _ROW_TENSORS},
        )

    def score(self, name: str) -> Tensor:
        """(B,) fp32 on the CPU; all NaN for a score that no image here has."""
        return self.scores.get(name, torch.full((len(self.prompts),), torch.nan))

    @property
    def score_names(self) -> list[str]:
        """Of the scores that any image drawn on this rank has."""
        return [*dict.fromkeys(name for part in (self, *self.replaced) for name in part.scores)]

    def drawn_rewards(self) -> Tensor:
        """(B + n,) of all images that were drawn on this rank, also of groups that were replaced."""
        return torch.cat([self.rewards, *(gone.rewards for gone in self.replaced)])

    def drawn_scores(self, name: str) -> Tensor:
        """(up to B + n,) one score of the same images; NaN, or left out, where they have none."""
        return torch.cat([self.score(name), *(gone.scores[name] for gone in self.replaced if name in gone.scores)])

    def cat(self, other: Rollout) -> Rollout:
        """These rows, then those of a rollout of the same iteration, grid and sampler."""
        return self._replace(
            prompts=self.prompts + other.prompts,
            metadata=self.metadata + other.metadata,
            cond=self.cond.cat(other.cond),
            scores={name: torch.cat([self.score(name), other.score(name)]) for name in self.scores | other.scores},
            trajectory=self.trajectory and other.trajectory and self.trajectory.cat(other.trajectory),
            drawn=self.drawn + other.drawn,
            failures=(self.failures or Counter()) + (other.failures or Counter()),
            **{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in _ROW_TENSORS},
        )


_ROW_TENSORS = ("group_index", "image_index", "x0", "images", "rewards", "advantages", "trained")


class TrainPoint(NamedTuple):
    """Where one network evaluation is trained, for every image of the rollout."""

    x_t: Tensor  # (B, *latent) fp32
    t: Tensor  # (B,) fp32 in [0, 1], 1 is pure noise
    target: Tensor  # (B, *latent) fp32, the velocity noise - x0; of a stochastic step, the latents it led to
    t_next: Tensor | None = None  # (B,) fp32, where a stochastic step led
    log_prob: Tensor | None = None  # (B,) fp32, its log density when it was sampled

    def rows(self, index: slice | Tensor) -> TrainPoint:
        """The same point for only some images."""
        x_t, t, target, *step = self
        return TrainPoint(x_t[index], t[index], target[index], *(None if p is None else p[index] for p in step))


class Velocities(NamedTuple):
    """What the weight sets predict at a TrainPoint; None is not evaluated (yet). Only `policy` carries a gradient."""

    policy: Tensor | None = None  # (B, *latent)
    ref: Tensor | None = None  # (B, *latent)
    old: Tensor | None = None  # (B, *latent)

    def rows(self, index: slice | Tensor) -> Velocities:
        """The same for only some images."""
        return Velocities(*(None if part is None else part[index] for part in self))
