"""Rules of the loop that follow from the config, the number of processes and a count alone.

The loop acts by them, and the plan and the console foretell by them, so that no rule is written twice. What depends on
scores (which images train, which groups are drawn again) only the loop knows; `geometry.py` says how much it can be.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from dgpo.algorithms import Algorithm
from dgpo.config import Config
from dgpo.core.solvers import network_calls
from dgpo.distributed import shard_of
from dgpo.errors import UserError
from dgpo.utils.people import HUMAN

HORIZON = 100_000
"""Iterations to which a run may be extended and still find the weight sets it then needs in its checkpoints."""

Number = TypeVar("Number", int, Tensor)


def weight_sets(config: Config) -> set[str]:
    """Name the weight sets that training uses beside the policy."""
    return {"ema", *config.algorithm.needs, *(_samplers(config) - {"policy"})}


def guidance_scales(config: Config) -> tuple[float, ...]:
    """The guidance of rollouts, of evaluations, and of the policy and the reference where they train; what is used."""
    rollouts, evaluations = config.sampling.guidance_scale, config.sampling.eval_guidance_scale
    used = [config.algorithm.policy_guidance(rollouts)]
    if config.offline is None:
        used.append(rollouts)
    if config.eval_every:
        used.append(rollouts if evaluations is None else evaluations)
    if "ref" in config.algorithm.needs:
        used.append(config.algorithm.ref_guidance(rollouts))
    return tuple(used)


def draws_averages(config: Config) -> bool:
    """Tell whether pictures are drawn by `ema`, at evaluations, or by `old`, in rollouts."""
    return bool(config.eval_every and config.eval_prompts) or "old" in _samplers(config)


def _samplers(config: Config) -> set[str]:
    """Name the weight sets that draw rollouts, sooner or later."""
    return {config.algorithm.rollout_weights(iteration) for iteration in (0, HORIZON) if config.offline is None}


def loaded_sets(config: Config) -> set[str]:
    """Name the weight sets that a run keeps beside the policy: evaluations measure the drift from `ref`."""
    return weight_sets(config) | ({"ref"} if config.eval_every and config.eval_prompts else set())


def solver_calls(config: Config) -> int:
    """Count the network calls that sample one image, guidance not counted; 0 where rollouts come from a dataset."""
    if config.offline is not None:
        return 0
    sampling = config.sampling
    solver = sampling.solver if config.is_deterministic() else "euler"  # one call a step, as the stochastic sampler
    return network_calls(solver, sampling.num_inference_steps)


def guided_rows(guidance_scale: float) -> int:
    """Count the rows that the network computes for an image under classifier-free guidance; a scale of 1 is none."""
    return 1 if guidance_scale == 1.0 else 2


def sampling_forwards(config: Config) -> int:
    """Count the network forwards that sample one image."""
    return solver_calls(config) * guided_rows(config.sampling.guidance_scale)


def point_forwards(algorithm: Algorithm, rollout_scale: float, split: bool, old_is_policy: bool) -> int:
    """Count the network forwards that train one image at one point; its backward counts as two.

    split: whether groups are, so that the policy is evaluated for their totals first
    """
    policy = guided_rows(algorithm.policy_guidance(rollout_scale))
    ref = guided_rows(algorithm.ref_guidance(rollout_scale)) if "ref" in algorithm.needs else 0
    old = policy if "old" in algorithm.needs and not old_is_policy else 0
    return policy * (3 + split) + ref + old


def update_groups(config: Config) -> int:
    """Count the groups of a rollout that trains, at most: beside newly answered ones people's earlier answers."""
    return config.num_groups + (config.human.reuse if HUMAN in config.rewards else 0)


def image_number(config: Config, attempt: int, group: Number, member: Number) -> Number:
    """Number an image within its iteration. attempt: how often the group's prompt was drawn again."""
    return (attempt * config.num_groups + group) * config.group_size + member


def straddling(groups: int, size: int, processes: int) -> frozenset[int]:
    """Name those of `groups` groups of `size` images whose images lie on several processes."""
    ends = (shard_of(groups * size, rank, processes).stop for rank in range(processes))
    return frozenset(end // size for end in ends if end % size)


def require_processes(config: Config, processes: int, smallest_group: int | None = None) -> None:
    """Refuse more processes than there are images. smallest_group: of the dataset that the run learns from."""
    images = config.num_groups * config.group_size
    if images < processes:
        raise UserError(
            f"num_groups * group_size = {images} images cannot occupy {processes} processes; use at most {images}, or "
            "more images"
        )
    if config.redraw_groups and config.group_size < processes:
        raise UserError(
            f"redraw_groups={config.redraw_groups} may draw one group again, whose {config.group_size} images cannot "
            f"occupy {processes} processes; use at most {config.group_size} of them, or redraw_groups=0"
        )
    if HUMAN in config.rewards and config.group_size < processes:
        raise UserError(
            f"groups that people are shown are drawn one at a time, and the {config.group_size} images of one cannot "
            f"occupy {processes} processes; use at most {config.group_size} of them, or a larger group_size"
        )
    images = config.num_groups * (smallest_group or config.group_size)
    if images < processes:
        raise UserError(
            f"{config.num_groups} groups of {smallest_group} images, the smallest of {config.offline}, cannot occupy "
            f"{processes} processes; raise num_groups, or use at most {images} processes"
        )


def trained_images(config: Config) -> int:
    """Count the images of a group that train, at most."""
    own = config.algorithm.trained_images(config.group_size)
    return own if config.train_images is None else min(own, config.train_images)


def in_update(config: Config, image: Number, update: int) -> Number:
    """Tell whether the image of this number trains in an update, counted from 0 in its iteration."""
    parts = config.updates_per_rollout if config.split_updates else 1
    return image % parts == update % parts


def micro_batch(config: Config, rows: int, group: int, by_group: bool = False) -> int:
    """Count the images of a forward and backward, at most.

    A loss that couples a group gets whole groups where one fits, which spares it a pass for their totals.

    rows: trained images of this process; group: images of the largest group; by_group: each group is to be alone
    """
    if by_group:
        return group
    size = config.micro_batch_size or max(1, rows)
    return size - size % group if config.algorithm.couples_group and group <= size < rows else size


def measures_noise(config: Config, step: int, processes: int) -> bool:
    """Tell whether a step measures the gradient noise scale: of two or more groups, each whole in one micro-batch.

    Sharded processes have only sums of one group from each, and need two or more of them. A stochastic sampler's steps
    are compared with their density at the rollout: but in fp32 this changes with the batch, which is not cut then.

    The loop also needs all trained groups to have the same size, and to be whole on a process.
    """
    fits = config.num_groups > 1 and config.num_groups % processes == 0
    fits &= config.shard == "none" or config.num_groups > processes  # a share has one group of each process
    fits &= config.redraw_groups == 0 or processes == 1  # groups drawn again are spread over processes by images
    fits &= config.micro_batch_size is None or config.micro_batch_size >= config.group_size
    fits &= config.dtype == "fp32" or config.is_deterministic()
    return bool(config.noise_scale_every) and fits and step % config.noise_scale_every == 0


def old_follows(config: Config, update: int) -> bool:
    """Tell whether `old` follows the policy after an update, counted from 0 in its iteration."""
    return config.algorithm.old_follows == "step" or update + 1 == config.updates_per_rollout


def old_is_policy(config: Config, step: int) -> bool:
    """Tell whether `old` holds the policy's very values before a step, so that it needs no forward of its own."""
    if step == 0:
        return True
    return old_follows(config, (step - 1) % config.updates_per_rollout) and config.algorithm.old_decay(step - 1) == 0


def evaluates(config: Config, iteration: int, last: bool) -> bool:
    """Tell whether there is an evaluation after so many iterations. last: whether the run ends there."""
    return bool(config.eval_every and config.eval_prompts) and (last or iteration % config.eval_every == 0)


def evaluations_ahead(config: Config, iteration: int, end: int) -> int:
    """Count the evaluations to come once `iteration` is done, in a run that ends with the iteration `end`."""
    if not evaluates(config, end, last=True):
        return 0
    return (end - 1) // config.eval_every - (iteration - 1) // config.eval_every + 1


def saves(config: Config, iteration: int, last: bool) -> bool:
    """Tell whether there is a checkpoint after so many iterations, beside one after each best evaluation."""
    return bool(config.checkpoint_every) and (last or iteration % config.checkpoint_every == 0)
