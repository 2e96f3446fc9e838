"""Each kind of network call of an iteration, once on the meta device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from dgpo.config import Config
from dgpo.core.losses import dsm_loss
from dgpo.models import Rows
from dgpo.models.plain import may_be_plain
from dgpo.models.text_cache import BATCH
from dgpo.plan.meta import Count, MetaModel
from dgpo.training.draw import for_evaluation
from dgpo.training.geometry import Geometry


@dataclass(frozen=True)
class Runs:
    """One of each kind of call. Peaks are bytes beyond weights, averages, gradients and what is kept of a rollout."""

    row: int  # bytes of one encoded prompt
    encoding: Count
    sampling: Count  # one solver step for a sampling batch
    decoding: Count  # a sampling batch
    update: Count  # a forward and backward of a micro-batch
    by_group: Count | None  # the same for a group, where measuring the noise scale may need more memory than that
    frozen: Count | None = None  # as `sampling`, computed as an update does it; None where that is the same
    old: Count | None = None  # an answer of `old` for a micro-batch, where it visits the device
    evaluation: Drawing | None = None  # as many images at a time in an evaluation, where they are of another size


@dataclass(frozen=True)
class Drawing:
    """One of each call that draws."""

    latent: int  # bytes of an image's latents
    sampling: Count
    decoding: Count


def runs_of(model: MetaModel, config: Config, g: Geometry, prompt: str, evaluated: MetaModel | None = None) -> Runs:
    """prompt: the longest one; evaluated: the model at the size of evaluations, where the run makes any of another."""
    scale, algorithm = config.sampling.guidance_scale, config.algorithm
    policy_scale = algorithm.policy_guidance(scale)
    with model.counted() as encoding:
        cond = model.encode([prompt] * (BATCH if config.free_text_encoders else 1))[:1]
        empty = model.encode([config.sampling.negative_prompt])
    if g.backwards > 1 or config.shard == "full":  # only the first backward makes the gradients; FSDP its own
        model.make_gradients()
    measured = g.group_batch if config.finetune == "full" or config.noise_scale_every == 1 else None
    weights = algorithm.rollout_weights(0)
    frozen = _forward(model, g.sampling_batch, cond, empty, scale, weights)
    may = config.shard == "none" and may_be_plain(model.model.network, model.model.dtype)
    plain = may and config.is_deterministic()
    return Runs(
        row=sum(t.numel() * t.element_size() for t in cond.tensors.values()),
        encoding=encoding,
        sampling=_forward(model, g.sampling_batch, cond, empty, scale, weights, drawing=True) if plain else frozen,
        decoding=_decoding(model, g.sampling_batch),
        update=_update(model, g.micro_batch, cond, empty, policy_scale),
        by_group=_update(model, measured, cond, empty, policy_scale) if measured else None,
        frozen=frozen if plain else None,
        old=_forward(model, g.micro_batch, cond, empty, policy_scale, "old") if _visits(model, config) else None,
        evaluation=None if evaluated is None else _evaluation(evaluated, config, g, cond, empty, may),
    )


def _visits(model: MetaModel, config: Config) -> bool:
    return config.averages == "host" and "old" in model.model.weights.names


def _evaluation(model: MetaModel, config: Config, g: Geometry, cond: Rows, empty: Rows, plain: bool) -> Drawing:
    n, scale = g.sampling_batch, for_evaluation(config.sampling).guidance_scale
    sampling = _forward(model, n, cond, empty, scale, "ema", drawing=plain)
    return Drawing(model.latents(1).nbytes, sampling, _decoding(model, n))


@torch.no_grad()
def _forward(
    model: MetaModel, n: int, cond: Rows, empty: Rows, scale: float, weights: str, drawing: bool = False
) -> Count:
    x, rows = model.latents(n), cond.repeat(n)
    with model.counted() as count, model.model.drawing(weights) if drawing else nullcontext():
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
