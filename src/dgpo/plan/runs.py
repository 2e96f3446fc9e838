"""What one process does in an iteration, as numbers, and each kind of network call in it on the meta device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dgpo.config import Config
from dgpo.core.losses import dsm_loss
from dgpo.core.solvers import network_calls
from dgpo.encoding import BATCH
from dgpo.models import Rows
from dgpo.plan.meta import Count, MetaModel


@dataclass(frozen=True)
class Geometry:
    """One process's share of an iteration. Where images do not divide evenly, the largest share."""

    processes: int
    images: int  # of a rollout
    trained: int  # of them
    sampling_batch: int
    micro_batch: int
    group_batch: int | None  # images of a backward while the gradient noise scale is measured; None: never
    splits: bool  # whether groups are spread over micro-batches or processes
    points: int  # per update
    passes: int  # updates that each use all trained images
    solver_calls: int  # network calls for one image's sampling, guidance not counted; 0: nothing is sampled

    @property
    def micro_batches(self) -> int:
        return math.ceil(self.trained / self.micro_batch)

    @property
    def updates(self) -> int:
        """Backward passes of an optimizer step."""
        return self.points * self.micro_batches


def geometry(config: Config, processes: int) -> Geometry:
    """As the loop cuts a rollout up."""
    c, steps = config, config.sampling.num_inference_steps
    group = c.train_images or c.group_size
    trained = math.ceil(c.num_groups * group / processes)
    size = c.micro_batch_size or trained
    micro = size - size % group if group <= size < trained else min(size, trained)
    measured = c.noise_scale_every and c.num_groups > 1 and c.num_groups % processes == 0
    images = math.ceil(c.num_groups * c.group_size / processes)
    return Geometry(
        processes=processes,
        images=images,
        trained=trained,
        sampling_batch=min(c.sampling.batch_size, images),
        micro_batch=micro,
        group_batch=group if measured and size >= group else None,
        splits=c.algorithm.couples_group and (micro % group > 0 or c.num_groups % processes > 0),
        points=c.algorithm.points_per_update(steps),
        passes=1 if c.split_updates else c.updates_per_rollout,
        solver_calls=network_calls(c.sampling.solver, steps) if c.offline is None else 0,
    )


@dataclass(frozen=True)
class Runs:
    """One of each kind of call. Peaks are bytes beyond weights, averages, gradients and what is kept of a rollout."""

    row: int  # bytes of one encoded prompt
    encoding: Count
    sampling: Count  # one solver step for a sampling batch
    decoding: Count  # a sampling batch
    update: Count  # a forward and backward of a micro-batch
    by_group: Count | None  # the same for a group, where measuring the noise scale may need more memory than that


def runs_of(model: MetaModel, config: Config, g: Geometry, prompt: str) -> Runs:
    """prompt: the longest one."""
    scale, algorithm = config.sampling.guidance_scale, config.algorithm
    policy_scale = algorithm.policy_guidance(scale)
    with model.counted() as encoding:
        cond = model.encode([prompt] * (BATCH if config.free_text_encoders else 1))[:1]
        empty = model.encode([""])
    if g.updates > 1:  # only the first backward makes the gradients
        model.make_gradients()
    measured = g.group_batch if config.finetune == "full" or config.noise_scale_every == 1 else None
    return Runs(
        row=sum(t.numel() * t.element_size() for t in cond.tensors.values()),
        encoding=encoding,
        sampling=_forward(model, g.sampling_batch, cond, empty, scale, algorithm.rollout_weights(0)),
        decoding=_decoding(model, g.sampling_batch),
        update=_update(model, g.micro_batch, cond, empty, policy_scale),
        by_group=_update(model, measured, cond, empty, policy_scale) if measured else None,
    )


@torch.no_grad()
def _forward(model: MetaModel, n: int, cond: Rows, empty: Rows, scale: float, weights: str) -> Count:
    x, rows = model.latents(n), cond.repeat(n)
    with model.counted() as count:
        model.velocity(x, rows, empty, scale, weights)
    return count


@torch.no_grad()
def _decoding(model: MetaModel, n: int) -> Count:
    x = model.latents(n)
    with model.counted() as count:
        model.decode(x)
    return count


def _update(model: MetaModel, n: int, cond: Rows, empty: Rows, scale: float) -> Count:
    x, target, rows = model.latents(n), model.latents(n), cond.repeat(n)
    with model.counted() as count:
        dsm_loss(model.velocity(x, rows, empty, scale), target).mean().backward()
    return count
