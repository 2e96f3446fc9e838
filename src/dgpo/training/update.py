"""All optimizer steps of one rollout. Every network forward of an update is a line of `learn` or `fixed_velocities`.

The update depends neither on the micro-batch size nor on the number of processes: a loss that couples a group gets the
group's total from a pass without gradient wherever a group is split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.algorithms import Algorithm
from dgpo.config import Config
from dgpo.core import seeds
from dgpo.core.groups import Reduce, identity
from dgpo.errors import NonFiniteError
from dgpo.models import VelocityModel
from dgpo.models.text_cache import CondCache
from dgpo.training import schedule
from dgpo.training.draw import chunks
from dgpo.training.meter import GradientMeter
from dgpo.training.optim import reduce_and_clip, set_lr
from dgpo.training.state import State
from dgpo.types import Rollout, TrainPoint, Velocities
from dgpo.utils.progress import Tell, silent


def improve(
    model: VelocityModel,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    state: State,
    config: Config,
    tell: Tell = silent,
) -> dict[str, float]:
    """Take all optimizer steps of one rollout; none where no image of it trains.

    Returns the last step's metrics, and as `forwards` what the rollout and all of its steps took of the network.
    """
    algorithm = config.algorithm
    metrics: dict[str, float] = {}
    forwards: float = rollout.drawn * schedule.sampling_forwards(config)
    for update in range(config.updates_per_rollout if rollout.group_sizes.any() else 0):
        part = share_of_update(rollout, update, config)
        generator = seeds.generator(config.seed, "points", rollout.iteration, update)
        points = list(algorithm.points(part, generator))
        metrics |= learn(model, optimizer, part, points, state, config, tell)
        forwards += metrics["forwards"]
        if schedule.old_follows(config, update):
            follow(model, algorithm.old_decay(state.step - 1))
    return metrics | {"forwards": forwards}


def learn(
    model: VelocityModel,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    points: Sequence[TrainPoint],
    state: State,
    config: Config,
    tell: Tell = silent,
) -> dict[str, float]:
    """Take one optimizer step: its loss is the mean over groups, their trained images and points."""
    algorithm, parameters = config.algorithm, model.weights.parameters()
    measures = schedule.measures_noise(config, state.step, distributed.world_size()) and has_gradients_of_groups(
        rollout, config
    )
    meter = GradientMeter(parameters) if measures else None
    micro = micro_batches(rollout, config, by_group=meter is not None)
    passes = len(micro) * len(points)
    tell("updating", 0, passes)
    split = algorithm.couples_group and splits_group(rollout, micro)
    trained = int(rollout.group_sizes.sum())  # images over all ranks
    # a group that was dropped counts like the others, with a loss of 0
    divisor = rollout.num_groups * trained / max(1, int((rollout.group_sizes > 0).sum()))
    guidance = algorithm.policy_guidance(rollout.guidance_scale)
    forwards = schedule.point_forwards(algorithm, rollout.guidance_scale, split, model.weights.old_is_policy)

    optimizer.zero_grad(set_to_none=True)
    fixed = distributed.together(
        lambda: [fixed_velocities(model, point, rollout, micro, split, algorithm) for point in points]
    )
    reducers = [group_totals(algorithm, *at, rollout, micro) if split else identity for at in zip(points, fixed)]

    def backward() -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for batch, rows in enumerate(micro):
            part = rollout.rows(rows)
            for place, (point, given, reduce) in enumerate(zip(points, fixed, reducers), start=1):
                at, given = point.rows(rows), given.rows(rows)
                v = model.velocity(at.x_t, at.t, part.cond, guidance)
                old = v.detach() if model.weights.old_is_policy else given.old
                loss, metrics = algorithm.loss(at, Velocities(v, given.ref, old), part, reduce)
                (loss * (len(part.prompts) / divisor / len(points))).backward()
                tell("updating", batch * len(points) + place, passes)
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0) + value * (len(part.prompts) / trained / len(points))
            if meter:
                meter.cut()
        return sums

    sums = distributed.together(backward)  # one rank may run out of memory
    group_sq_norms = meter.finish() if meter else None

    norm = reduce_and_clip(model.weights, config.optimizer.max_grad_norm)
    metrics = {f"train/{name}": value for name, value in summed(sums).items()}
    metrics |= {"train/grad_norm": norm, "train/lr": set_lr(optimizer, state.step, config)}
    metrics |= {"forwards": trained * len(points) * forwards}
    require_finite(metrics, state)
    taken = state.step
    state.step += 1  # before the weights change: what fails from here on leaves no whole iteration
    optimizer.step()
    model.weights.stepped()
    if config.averages == "host":
        optimizer.zero_grad(set_to_none=True)  # an average that visits the device takes their room
    model.weights.ema_update("ema", min(config.optimizer.ema_decay, (1 + taken) / (10 + taken)))
    if group_sq_norms is not None:
        if model.weights.sharded:  # each is of the sum of one group of every rank
            state.noise.add(distributed.all_reduce_sum(group_sq_norms), norm**2, distributed.world_size())
        else:
            sq_norms = distributed.all_gather_rows(group_sq_norms)
            dropped = sq_norms.new_zeros(rollout.num_groups - len(sq_norms))
            state.noise.add(torch.cat([sq_norms, dropped]), norm**2)
        metrics |= {"train/grad_noise_scale": state.noise.groups, "train/grad_signal": state.noise.signal}
    return metrics


def follow(model: VelocityModel, decay: float) -> None:
    """Let `old` follow the policy after an optimizer step."""
    if "old" in model.weights.names:
        model.weights.ema_update("old", decay)


def to_train(rollout: Rollout, encode: CondCache, config: Config) -> Rollout:
    """Choose the images that train; some get the empty prompt, whole groups of them if the loss couples a group."""
    rollout = rollout.rows(rollout.trained)
    if not config.text_dropout or not rollout.prompts:
        return rollout
    rng = seeds.generator(config.seed, "text dropout", rollout.iteration)
    drawn = torch.rand((1 + config.redraw_groups) * rollout.num_groups * config.group_size, generator=rng)
    chance = rollout.group_index if config.algorithm.couples_group else rollout.image_index
    dropped = drawn.to(rollout.x0.device)[chance] < config.text_dropout
    own, empty = torch.arange(len(dropped), device=dropped.device), len(dropped)
    choices = rollout.cond.cat(encode([""]).to(dropped.device))
    return rollout._replace(cond=choices[torch.where(dropped, empty, own)])


def share_of_update(rollout: Rollout, update: int, config: Config) -> Rollout:
    """All images, or with `split_updates` those that are this update's."""
    if not config.split_updates:
        return rollout
    part = rollout.rows(schedule.in_update(config, rollout.image_index, update))
    counts = torch.bincount(part.group_index, minlength=rollout.num_groups)
    return part._replace(group_sizes=distributed.all_reduce_sum(counts))


@torch.no_grad()
def fixed_velocities(
    model: VelocityModel,
    point: TrainPoint,
    rollout: Rollout,
    micro: Sequence[slice],
    split: bool,
    algorithm: Algorithm,
) -> Velocities:
    """What does not train at this point: `ref` and `old` where the algorithm needs them, the policy of split groups.

    While `old` still equals the policy, the policy's own forward stands in for it.
    """
    at = [(point.rows(rows), rollout.cond[rows]) for rows in micro]
    policy_scale = algorithm.policy_guidance(rollout.guidance_scale)
    ref_scale = algorithm.ref_guidance(rollout.guidance_scale)
    ref = old = policy = None
    if "ref" in algorithm.needs and at:
        ref = torch.cat([model.velocity(p.x_t, p.t, c, ref_scale, "ref") for p, c in at])
    if split and at:
        policy = torch.cat([model.velocity(p.x_t, p.t, c, policy_scale) for p, c in at])
    if "old" in algorithm.needs and not model.weights.old_is_policy and at:
        old = torch.cat([model.velocity(p.x_t, p.t, c, policy_scale, "old") for p, c in at])
    return Velocities(policy, ref, policy if model.weights.old_is_policy else old)


def group_totals(
    algorithm: Algorithm, point: TrainPoint, given: Velocities, rollout: Rollout, micro: Sequence[slice]
) -> Reduce:
    """A `reduce` that answers with the sums over whole groups, whatever rows it is asked from."""
    parts = [algorithm.statistic(point.rows(rows), given.rows(rows), rollout.rows(rows)) for rows in micro]
    total = distributed.all_reduce_sum(sum(parts, torch.zeros_like(rollout.group_sizes, dtype=torch.float32)))
    return lambda partial: total


def micro_batches(rollout: Rollout, config: Config, by_group: bool = False) -> list[slice]:
    """This rank's rows, cut up: if the loss couples a group as many whole groups as fit; each group if `by_group`."""
    rows, group = len(rollout.prompts), max(1, int(rollout.group_sizes.max()))
    return list(chunks(rows, schedule.micro_batch(config, rows, group, by_group)))


def splits_group(rollout: Rollout, micro: Sequence[slice]) -> bool:
    """Whether any group is spread over micro-batches or ranks, on any rank."""
    counts = [torch.bincount(rollout.group_index[rows], minlength=rollout.num_groups) for rows in micro]
    split = sum(((count > 0) & (count < rollout.group_sizes)).any() for count in counts)
    split = torch.as_tensor(split, device=rollout.group_sizes.device)
    return distributed.all_reduce_sum(split.float()).item() > 0


def has_gradients_of_groups(rollout: Rollout, config: Config) -> bool:
    """Whether the noise scale can be told from the gradient of each group: all of one size, and whole on a rank.

    With sharding every rank must have as many groups: each share of the gradient is a sum of one group from each.
    """
    trained = rollout.group_sizes[rollout.group_sizes > 0]
    as_many = len(trained) == rollout.num_groups == config.num_groups
    of_one_size = len(trained.unique()) == 1 and (config.shard == "none" or as_many)
    return of_one_size and not splits_group(rollout, [slice(None)])  # as people's earlier answers may be split


def require_finite(metrics: Mapping[str, float], state: State) -> None:
    """Stop before a step that would ruin the weights."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise distributed.shared(
            NonFiniteError(
                f"{', '.join(bad)} not finite in the update of iteration {state.iteration + 1} (step "
                f"{state.step + 1}). The step was not taken. Look at train/grad_norm and train/kl of the last rows of "
                "metrics.jsonl: growing values ask for a smaller optimizer.lr or a larger kl_coef; sudden ones for "
                "dtype fp32, or for rewards of absurd size"
            )
        )


def summed(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Sums over ranks by name; a rank without images has no names."""
    parts = distributed.gather_objects([{name: value.item() for name, value in sums.items()}])
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: math.fsum(part.get(name, 0.0) for part in parts) for name in names}
