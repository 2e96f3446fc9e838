"""TODO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dgpo.config import Sampling
from dgpo.core.solvers import VelocityFn, sde_solve, solve
from dgpo.errors import NonFiniteError
from dgpo.models import Cond, VelocityModel
from dgpo.types import Sde, Trajectory


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
    guidance_scale: float,
    weights: str,
) -> Trajectory:
    """The stochastic sampler's path for each row of `cond` and stream, at once; the last latents are x0."""
    velocity = _velocity_fn(model, cond, guidance_scale, weights)
    _, path, densities = sde_solve(
        velocity, model.init_noise(streams), sigmas, streams, sde.noise_level, sde.window, sde.constant
    )
    return Trajectory(path, densities, sde)


def _velocity_fn(model: VelocityModel, cond: Cond, guidance_scale: float, weights: str) -> VelocityFn:
    cond = cond.to(model.device)
    return lambda x, t: model.velocity(x, t, cond, guidance_scale, weights)


def decode(model: VelocityModel, x0: Tensor, batch_size: int, weights: str) -> Tensor:
    """(n, *latent_shape) -> (n, 3, H, W) in [0, 1], on the CPU, where rewards take them.

    weights: that drew x0. Raises NonFiniteError rather than let a reward see what is no picture.
    """
    if not x0.isfinite().all():
        raise NonFiniteError(
            f"the network with the weights {weights!r} draws latents that are not finite: the policy has exploded, or "
            "its dtype is too narrow (take fp32)"
        )
    images = torch.cat([model.decode(x0[rows]).cpu() for rows in chunks(len(x0), batch_size)])
    if not images.isfinite().all():
        raise NonFiniteError(
            f"the VAE decodes latents of the weights {weights!r}, which are finite (up to {x0.abs().max():.3g}), to "
            "pictures that are not: its dtype is too narrow for them (take fp32), or the policy has exploded"
        )
    return images


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
