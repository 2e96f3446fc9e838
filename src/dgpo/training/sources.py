"""One rollout: prompts -> conditioning -> noise -> solver -> x0 -> images -> rewards -> advantages.

An image is a pure function of (seed, iteration, group, member): each has its own noise generator and each prompt is
encoded alone, so that neither the sampling batch nor the spread over ranks nor a resume changes it (another sampling
batch rounds the network's sums otherwise). Only x0 is kept, since most losses train at noise levels of their own; a
policy gradient also gets the stochastic sampler's path. Rewards score each batch of images while the next is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.algorithms import Algorithm
from dgpo.config import Config
from dgpo.core import seeds
from dgpo.core.advantages import unequal_groups
from dgpo.data.groups import GroupDataset
from dgpo.data.prompts import PromptSet
from dgpo.models import Cond, VelocityModel
from dgpo.models.text_cache import CondCache
from dgpo.rewards.combine import RewardSet
from dgpo.rewards.scoring import Scored
from dgpo.run.stopwatch import Stopwatch
from dgpo.training import schedule
from dgpo.training.compare import compared, with_advantages
from dgpo.training.draw import chunks, decode, grid, sample, sample_path
from dgpo.training.split_groups import on_several_ranks, scored_whole
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
            whole = compared(rollout, config)
            unequal = unequal_groups(whole.rewards, whole.group_index, config.num_groups)
            groups = torch.nonzero(~unequal).flatten().tolist()
            if not groups:
                break
            rollout = rollout.rows(unequal[rollout.group_index])
    assert rollout is not None
    return with_advantages(algorithm, rollout, config)


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

    def read() -> tuple[Tensor, Cond]:
        x0 = torch.cat([dataset.x0(groups[place], members[place], model) for place in places])
        return x0, encode(rows.prompts).to(device)

    with clock.phase("rollout"):
        x0, cond = distributed.together(read)
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
    return with_advantages(algorithm, rollout, config)


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
    image_index = schedule.image_number(config, attempt, group_index, mine[:, 1])
    streams = [seeds.generator(config.seed, "rollout", iteration, *divmod(i, size)) for i in image_index.tolist()]
    with clock.phase("rollout"):
        cond = distributed.together(lambda: encode(rows.prompts).to(device))
        sigmas, scale = grid(model, sampling), sampling.guidance_scale
        weights = algorithm.rollout_weights(iteration)
    split = on_several_ranks(len(batch), size)

    def drawn(part: slice) -> tuple[Tensor, Tensor, Trajectory | None]:
        given = (model, cond[part], streams[part], sigmas)
        trajectory = None if sde is None else sample_path(*given, sde, scale, weights)
        x0 = trajectory.latents[:, -1] if trajectory else sample(*given, sampling, scale, weights)
        return x0, decode(model, x0, sampling.batch_size, weights), trajectory

    def drawn_and_scored() -> tuple[list[tuple[Tensor, Tensor, Trajectory | None]], Scored]:
        parts: list[tuple[Tensor, Tensor, Trajectory | None]] = []
        with reward.scoring(rows.prompts, rows.metadata, mine[:, 0], elsewhere=split) as scoring:
            with clock.phase("rollout"):
                for part in chunks(len(rows), sampling.batch_size):
                    parts.append(drawn(part))
                    scoring.add(parts[-1][1])
            with clock.phase("reward"):
                return parts, scoring.result()

    parts, found = distributed.together(drawn_and_scored)
    x0, images = torch.cat([x0 for x0, _, _ in parts]), torch.cat([images for _, images, _ in parts])
    with clock.phase("reward"):
        found = scored_whole(reward, found, split, batch, mine, images)
    clock.add("reward_busy", found.busy)
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
        scores=found.scores,
        rewards=reward.weighted(found.scores, rows.metadata).to(device),
        advantages=torch.zeros(len(rows), device=device),
        trained=torch.ones(len(rows), dtype=torch.bool, device=device),
        trajectory=parts[0][2] and parts[0][2].cat(*(path for _, _, path in parts[1:] if path)),
        failures=found.failures,
    )
