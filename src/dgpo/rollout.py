"""One rollout: prompts -> conditioning -> noise -> solver -> x0 -> images -> rewards -> advantages.

An image is a pure function of (seed, iteration, group, member): each has its own noise generator, so that neither the
sampling batch nor the spread over ranks changes it. Only x0 is kept, since the losses train at noise levels of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.algorithms import Algorithm
from dgpo.config import Config, Sampling
from dgpo.core import seeds
from dgpo.core.solvers import solve
from dgpo.data import PromptSet
from dgpo.models import Cond, VelocityModel
from dgpo.rewards.combine import RewardSet
from dgpo.stopwatch import Stopwatch
from dgpo.types import Rollout


class CondCache:
    """Each distinct prompt is encoded once per run; encoders are frozen."""

    def __init__(self, model: VelocityModel) -> None:
        self._model = model
        self._rows: dict[str, Cond] = {}

    def __call__(self, prompts: list[str]) -> Cond:
        """len(prompts) rows of conditioning."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._rows]
        if new:
            encoded = self._model.encode(new)
            self._rows |= {p: encoded[i : i + 1] for i, p in enumerate(new)}
        first, *others = (self._rows[p] for p in prompts)
        return first.cat(*others)


def collect(
    model: VelocityModel,
    algorithm: Algorithm,
    reward: RewardSet,
    encode: CondCache,
    batch: PromptSet,
    config: Config,
    iteration: int,
    clock: Stopwatch,
) -> Rollout:
    """Sample `config.group_size` images for each prompt of `batch`, this rank's share of them, and score them."""
    num_groups, group_size = len(batch), config.group_size
    everyone = torch.arange(num_groups).repeat_interleave(group_size)  # (B,) over all ranks
    mine = torch.arange(len(everyone))[distributed.shard(len(everyone))]
    group_index = everyone[mine]
    prompts = [batch.prompts[g] for g in group_index]
    metadata = [batch.metadata[g] for g in group_index]
    streams = [
        seeds.generator(config.seed, "rollout", iteration, index // group_size, index % group_size)
        for index in mine.tolist()
    ]
    with clock.phase("rollout"):
        cond = encode(batch.prompts)[group_index.to(model.device)]
        sigmas = grid(model, config.sampling)
        weights = algorithm.rollout_weights(iteration)
        x0 = sample(model, cond, streams, sigmas, config.sampling, config.sampling.guidance_scale, weights)
        images = decode(model, x0, config.sampling.batch_size)
    with clock.phase("reward"):
        scores, rewards = reward(images, prompts, metadata)
    group_sizes = torch.full((num_groups,), group_size)
    advantages = algorithm.advantages(distributed.all_gather_rows(rewards), everyone, num_groups)[mine]
    to = model.device
    return Rollout(
        iteration=iteration,
        num_groups=num_groups,
        group_sizes=group_sizes.to(to),
        prompts=prompts,
        metadata=metadata,
        group_index=group_index.to(to),
        image_index=mine.to(to),
        cond=cond,
        sigmas=sigmas,
        guidance_scale=config.sampling.guidance_scale,
        x0=x0,
        images=images,
        scores=scores,
        rewards=rewards.to(to),
        advantages=advantages.to(to),
    )


def grid(model: VelocityModel, sampling: Sampling) -> Tensor:
    """(num_inference_steps + 1,) the noise levels that the solver visits."""
    return model.sigmas(sampling.num_inference_steps)


@torch.no_grad()
def sample(
    model: VelocityModel,
    cond: Cond,
    streams: list[torch.Generator],
    sigmas: Tensor,
    sampling: Sampling,
    guidance_scale: float,
    weights: str,
) -> Tensor:
    """One image per row of `cond` and stream: x0 (n, *latent_shape)."""
    parts = []
    for rows in chunks(len(cond), sampling.batch_size):
        part = cond[rows]

        def velocity(x: Tensor, t: Tensor, part: Cond = part) -> Tensor:
            return model.velocity(x, t, part, guidance_scale, weights)

        parts.append(solve(velocity, model.init_noise(streams[rows]), sigmas, sampling.solver))
    return torch.cat(parts)


def decode(model: VelocityModel, x0: Tensor, batch_size: int) -> Tensor:
    """(n, *latent_shape) -> (n, 3, H, W) in [0, 1]."""
    return torch.cat([model.decode(x0[rows]) for rows in chunks(len(x0), batch_size)])


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
