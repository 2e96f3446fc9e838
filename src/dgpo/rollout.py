"""One rollout: prompts -> conditioning -> noise -> solver -> x0 -> images -> rewards -> advantages.

An image is a pure function of (seed, iteration, group, member): each has its own noise generator and each prompt is
encoded alone, so that neither the sampling batch nor the spread over ranks nor a resume changes it (another sampling
batch rounds the network's sums otherwise). Only x0 is kept, since the losses train at noise levels of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.algorithms import Algorithm
from dgpo.config import Config, Sampling
from dgpo.core import seeds
from dgpo.core.solvers import solve
from dgpo.data import PromptSet
from dgpo.errors import UserError
from dgpo.models import Cond, VelocityModel
from dgpo.rewards.base import RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.stopwatch import Stopwatch
from dgpo.types import Rollout

T = TypeVar("T")


class CondCache:
    """What the frozen encoders say of a prompt, kept on the CPU for the `size` prompts used last."""

    def __init__(self, model: VelocityModel, size: int = 2048) -> None:
        self._row = lru_cache(size)(lambda prompt: model.encode([prompt]).to("cpu"))

    def __call__(self, prompts: list[str]) -> Cond:
        """len(prompts) rows of conditioning, on the CPU."""
        first, *others = map(self._row, prompts)
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
    num_groups, group_size, device = len(batch), config.group_size, model.device
    everyone = torch.arange(num_groups).repeat_interleave(group_size)  # (B,) the group of each image, over all ranks
    mine = torch.arange(len(everyone))[distributed.shard(len(everyone))]
    group_index = everyone[mine]
    rows = batch.subset(group_index.tolist())
    streams = [seeds.generator(config.seed, "rollout", iteration, *divmod(i, group_size)) for i in mine.tolist()]
    with clock.phase("rollout"):
        cond = encode(rows.prompts).to(device)
        sigmas = grid(model, config.sampling)
        weights = algorithm.rollout_weights(iteration)
        x0 = sample(model, cond, streams, sigmas, config.sampling, config.sampling.guidance_scale, weights)
        images = decode(model, x0, config.sampling.batch_size)
    with clock.phase("reward"):
        scores, rewards = together(lambda: reward(images, rows.prompts, rows.metadata))
    advantages = algorithm.advantages(distributed.all_gather_rows(rewards), everyone, num_groups)[mine]
    return Rollout(
        iteration=iteration,
        num_groups=num_groups,
        group_sizes=torch.full((num_groups,), group_size, device=device),
        prompts=rows.prompts,
        metadata=rows.metadata,
        group_index=group_index.to(device),
        image_index=mine.to(device),
        cond=cond,
        sigmas=sigmas,
        guidance_scale=config.sampling.guidance_scale,
        x0=x0,
        images=images,
        scores=scores,
        rewards=rewards.to(device),
        advantages=advantages.to(device),
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
        part = cond[rows].to(model.device)

        def velocity(x: Tensor, t: Tensor, part: Cond = part) -> Tensor:
            return model.velocity(x, t, part, guidance_scale, weights)

        parts.append(solve(velocity, model.init_noise(streams[rows]), sigmas, sampling.solver))
    return torch.cat(parts)


def decode(model: VelocityModel, x0: Tensor, batch_size: int) -> Tensor:
    """(n, *latent_shape) -> (n, 3, H, W) in [0, 1], on the CPU, where rewards take them."""
    return torch.cat([model.decode(x0[rows]).cpu() for rows in chunks(len(x0), batch_size)])


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def together(work: Callable[[], T]) -> T:
    """What `work` returns on this rank. Where it fails on one rank, all raise: none is left waiting for another."""
    done: list[T] = []
    failure = None
    try:
        done.append(work())
    except (RewardError, UserError) as error:
        failure = error
    failures = distributed.gather_objects([failure] if failure else [])
    if failures:
        raise failure or failures[0]
    return done[0]
