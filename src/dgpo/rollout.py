"""One rollout: prompts -> conditioning -> noise -> solver -> x0 -> images -> rewards -> advantages.

An image is a pure function of (seed, iteration, group, member): each has its own noise generator and each prompt is
encoded alone, so that neither the sampling batch nor the spread over ranks nor a resume changes it (another sampling
batch rounds the network's sums otherwise). Only x0 is kept, since most losses train at noise levels of their own; a
policy gradient also gets the stochastic sampler's path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.algorithms import Algorithm
from dgpo.config import Config, Sampling
from dgpo.core import seeds
from dgpo.core.advantages import most_informative, unequal_groups
from dgpo.core.solvers import VelocityFn, sde_solve, solve
from dgpo.data import PromptSet
from dgpo.encoding import CondCache
from dgpo.models import Cond, VelocityModel
from dgpo.offline import GroupDataset
from dgpo.rewards.combine import RewardSet
from dgpo.stopwatch import Stopwatch
from dgpo.types import Rollout, Sde, Trajectory


def collect(
    model: VelocityModel,
    algorithm: Algorithm,
    reward: RewardSet,
    encode: CondCache,
    draw_prompts: Callable[[int], PromptSet],
    config: Config,
    iteration: int,
    clock: Stopwatch,
) -> Rollout:
    """One scored rollout, this rank's share of it. draw_prompts: n -> the next n prompts, one for each group.

    Groups whose images all earned the same are sampled again for other prompts, `config.redraw_groups` times at most.
    """
    steps = config.sampling.num_inference_steps
    sde = algorithm.sampler(iteration, steps, seeds.generator(config.seed, "sampler", iteration))
    groups, rollout = list(range(config.num_groups)), None
    for attempt in range(1 + config.redraw_groups):
        batch = draw_prompts(len(groups))
        drawn = _sample_groups(model, algorithm, reward, encode, batch, groups, config, iteration, attempt, sde, clock)
        rollout = drawn if rollout is None else rollout.cat(drawn)
        if attempt < config.redraw_groups:
            rewards, index = map(distributed.all_gather_rows, (rollout.rewards, rollout.group_index))
            unequal = unequal_groups(rewards, index, config.num_groups)
            groups = torch.nonzero(~unequal).flatten().tolist()
            if not groups:
                break
            rollout = rollout.rows(unequal[rollout.group_index])
    assert rollout is not None
    return _compared(algorithm, rollout, config)


def replay(
    model: VelocityModel,
    algorithm: Algorithm,
    dataset: GroupDataset,
    groups: Sequence[int],
    encode: CondCache,
    config: Config,
    iteration: int,
    clock: Stopwatch,
) -> Rollout:
    """These groups of a dataset as a rollout, this rank's share of it: what `collect` would have returned."""
    device, sizes = model.device, dataset.sizes
    everyone = [(place, member) for place, group in enumerate(groups) for member in range(sizes[group])]
    mine = everyone[distributed.shard(len(everyone))]
    places = list(dict.fromkeys(place for place, _ in mine))
    members = {place: [member for other, member in mine if other == place] for place in places}
    rows = dataset.prompts.subset(groups[place] for place, _ in mine)
    group_index, member = torch.tensor(mine).unbind(1)

    def labels(of: Callable[[int], Tensor]) -> Tensor:
        return torch.cat([of(groups[place])[members[place]] for place in places])

    with clock.phase("rollout"):
        x0 = distributed.together(
            lambda: torch.cat([dataset.x0(groups[place], members[place], model) for place in places])
        )
        cond = encode(rows.prompts).to(device)
    rollout = Rollout(
        iteration=iteration,
        num_groups=len(groups),
        group_sizes=torch.tensor([sizes[group] for group in groups], device=device),
        prompts=rows.prompts,
        metadata=rows.metadata,
        group_index=group_index.to(device),
        image_index=(group_index * config.group_size + member).to(device),
        cond=cond,
        sigmas=grid(model, config.sampling),
        guidance_scale=config.sampling.guidance_scale,
        x0=x0,
        images=torch.empty(len(rows), 0),
        scores={name: labels(lambda group, name=name: dataset.scores(group)[name]) for name in dataset.scores(0)},
        rewards=labels(dataset.rewards).to(device),
        advantages=torch.zeros(len(rows), device=device),
        trained=torch.ones(len(rows), dtype=torch.bool, device=device),
    )
    return _compared(algorithm, rollout, config)


def _sample_groups(
    model: VelocityModel,
    algorithm: Algorithm,
    reward: RewardSet,
    encode: CondCache,
    batch: PromptSet,
    groups: Sequence[int],
    config: Config,
    iteration: int,
    attempt: int,
    sde: Sde | None,
    clock: Stopwatch,
) -> Rollout:
    """`config.group_size` images for each prompt of `batch`, this rank's share, as the groups of these numbers."""
    size, device, sampling = config.group_size, model.device, config.sampling
    everyone = torch.tensor([(place, member) for place in range(len(batch)) for member in range(size)])
    mine = everyone[distributed.shard(len(everyone))]
    rows = batch.subset(mine[:, 0].tolist())
    group_index = torch.tensor(groups)[mine[:, 0]]
    image_index = (attempt * config.num_groups + group_index) * size + mine[:, 1]
    streams = [seeds.generator(config.seed, "rollout", iteration, *divmod(i, size)) for i in image_index.tolist()]
    with clock.phase("rollout"):
        cond = encode(rows.prompts).to(device)
        sigmas, scale = grid(model, sampling), sampling.guidance_scale
        weights, trajectory = algorithm.rollout_weights(iteration), None
        if sde is None:
            x0 = sample(model, cond, streams, sigmas, sampling, scale, weights)
        else:
            trajectory = sample_path(model, cond, streams, sigmas, sde, sampling, scale, weights)
            x0 = trajectory.latents[:, -1]
        images = decode(model, x0, sampling.batch_size)
    with clock.phase("reward"):
        scores, rewards = distributed.together(lambda: reward(images, rows.prompts, rows.metadata))
    return Rollout(
        iteration=iteration,
        num_groups=config.num_groups,
        group_sizes=torch.full((config.num_groups,), size, device=device),
        prompts=rows.prompts,
        metadata=rows.metadata,
        group_index=group_index.to(device),
        image_index=image_index.to(device),
        cond=cond,
        sigmas=sigmas,
        guidance_scale=scale,
        x0=x0,
        images=images,
        scores=scores,
        rewards=rewards.to(device),
        advantages=torch.zeros(len(rows), device=device),
        trained=torch.ones(len(rows), dtype=torch.bool, device=device),
        trajectory=trajectory,
    )


def _compared(algorithm: Algorithm, rollout: Rollout, config: Config) -> Rollout:
    """The rollout with its advantages, and the choice of the images that train: facts of the batch over all ranks."""
    place = distributed.all_gather_rows(rollout.image_index)
    order = place.argsort()
    rewards, index = (distributed.all_gather_rows(part)[order] for part in (rollout.rewards, rollout.group_index))
    advantages = algorithm.advantages(rewards, index, rollout.num_groups)
    trained = torch.ones_like(index, dtype=torch.bool)
    if config.train_images:
        advantages, trained = most_informative(advantages, index, rollout.num_groups, config.train_images)
    if config.drop_equal_groups:
        trained &= unequal_groups(rewards, index, rollout.num_groups)[index]
    if algorithm.skips_zero:
        trained &= advantages != 0
    mine = torch.searchsorted(place[order], rollout.image_index)
    sizes = torch.bincount(index[trained], minlength=rollout.num_groups)
    return rollout._replace(advantages=advantages[mine], trained=trained[mine], group_sizes=sizes)


def for_evaluation(sampling: Sampling) -> Sampling:
    """The same with the guidance and the steps of evaluations and samples in the place of those of rollouts."""
    scale, steps = sampling.eval_guidance_scale, sampling.eval_num_inference_steps
    return replace(
        sampling,
        guidance_scale=sampling.guidance_scale if scale is None else scale,
        num_inference_steps=sampling.num_inference_steps if steps is None else steps,
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
        velocity = _velocity_fn(model, cond[rows], guidance_scale, weights)
        parts.append(solve(velocity, model.init_noise(streams[rows]), sigmas, sampling.solver))
    return torch.cat(parts)


@torch.no_grad()
def sample_path(
    model: VelocityModel,
    cond: Cond,
    streams: list[torch.Generator],
    sigmas: Tensor,
    sde: Sde,
    sampling: Sampling,
    guidance_scale: float,
    weights: str,
) -> Trajectory:
    """The stochastic sampler's path for each row of `cond` and stream; the last latents are x0."""
    latents, log_probs = [], []
    for rows in chunks(len(cond), sampling.batch_size):
        velocity, noise = _velocity_fn(model, cond[rows], guidance_scale, weights), model.init_noise(streams[rows])
        _, path, densities = sde_solve(
            velocity, noise, sigmas, streams[rows], sde.noise_level, sde.window, sde.constant
        )
        latents.append(path)
        log_probs.append(densities)
    return Trajectory(torch.cat(latents), torch.cat(log_probs), sde)


def _velocity_fn(model: VelocityModel, cond: Cond, guidance_scale: float, weights: str) -> VelocityFn:
    cond = cond.to(model.device)
    return lambda x, t: model.velocity(x, t, cond, guidance_scale, weights)


def decode(model: VelocityModel, x0: Tensor, batch_size: int) -> Tensor:
    """(n, *latent_shape) -> (n, 3, H, W) in [0, 1], on the CPU, where rewards take them."""
    return torch.cat([model.decode(x0[rows]).cpu() for rows in chunks(len(x0), batch_size)])


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
