"""The one recipe for drawing: noise -> solver -> latents -> images, one batch after the other.

Rollouts, evaluations, `dgpo sample` and `dgpo collect` all draw with `draw`. An image depends on its row of the
conditioning and on its own noise generator only; another batch size merely rounds the network's sums otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dgpo.config import Sampling
from dgpo.core.solvers import sde_solve, solve
from dgpo.errors import NonFiniteError, UserError
from dgpo.models import Cond, VelocityModel
from dgpo.types import Sde, Trajectory

M = TypeVar("M", bound=VelocityModel)


class Drawn(NamedTuple):
    """One batch of images."""

    x0: Tensor  # (n, *latent_shape) fp32, on the model's device
    images: Tensor  # (n, 3, H, W) fp32 in [0, 1], on the CPU, where rewards take them
    trajectory: Trajectory | None  # of a stochastic sampler

    @staticmethod
    def cat(batches: Sequence[Drawn]) -> Drawn:
        """The batches as one. At least one."""
        x0, images, paths = zip(*batches)
        return Drawn(torch.cat(x0), torch.cat(images), paths[0] and paths[0].cat(*paths[1:]))


@torch.no_grad()
def draw(
    model: VelocityModel,
    cond: Cond,
    streams: Sequence[torch.Generator],
    sampling: Sampling,
    weights: str,
    sde: Sde | None = None,
) -> Iterator[Drawn]:
    """Draw one image for each row of `cond` and its stream, `sampling.batch_size` at a time.

    cond: n rows; streams: n CPU generators, one per image
    weights: the weight set that draws
    sde: how a stochastic sampler draws; None: the deterministic solver of `sampling`
    """
    sigmas, scale = grid(model, sampling), sampling.guidance_scale
    for rows in chunks(len(streams), sampling.batch_size):
        own, noise = cond[rows].to(model.device), model.init_noise([*streams[rows]])

        def velocity(x: Tensor, t: Tensor, own: Cond = own) -> Tensor:
            return model.velocity(x, t, own, scale, weights)

        trajectory = None
        if sde is None:
            with _drawing(model, weights):
                x0 = solve(velocity, noise, sigmas, sampling.solver)
        else:
            _, path, log_probs = sde_solve(
                velocity, noise, sigmas, [*streams[rows]], sde.noise_level, sde.window, sde.noise
            )
            x0, trajectory = path[:, -1], Trajectory(path, log_probs, sde)
        yield Drawn(x0, _decode(model, x0, weights), trajectory)


def counted(batches: Iterable[Drawn], tell: Callable[[int], None]) -> Iterator[Drawn]:
    """Pass batches on as they are drawn. tell: hears how many images there are, at first 0."""
    images = 0
    tell(images)
    for batch in batches:
        images += len(batch.x0)
        tell(images)
        yield batch


def _drawing(model: VelocityModel, weights: str) -> AbstractContextManager[None]:
    """The model's own way to draw, if it has one. A stochastic sampler's path is compared with the update's velocities,
    and must round as they do."""
    own = getattr(model, "drawing", None)
    return nullcontext() if own is None else own(weights)


def _decode(model: VelocityModel, x0: Tensor, weights: str) -> Tensor:
    """(n, *latent_shape) -> (n, 3, H, W). Raises NonFiniteError rather than let a reward see what is no picture."""
    if not x0.isfinite().all():
        raise NonFiniteError(
            f"the network with the weights {weights!r} draws latents that are not finite: the policy has exploded, or "
            "its dtype is too narrow (take fp32)"
        )
    images = model.decode(x0).cpu()
    if not all(bound.isfinite() for bound in images.aminmax()):  # nothing of the pictures' size is made for it
        raise NonFiniteError(
            f"the VAE decodes latents of the weights {weights!r}, which are finite (up to {x0.abs().max():.3g}), to "
            "pictures that are not: its dtype is too narrow for them (take vae_dtype=fp32), or the policy has exploded"
        )
    return images


def grid(model: VelocityModel, sampling: Sampling) -> Tensor:
    """The noise levels that the solver visits, (num_inference_steps + 1,) fp32, descending to 0."""
    return model.sigmas(sampling.num_inference_steps)


def at_rollout_size(model: M, sampling: Sampling) -> M:
    """The model for the images that train: of `sampling.resolution`, or as it is. Asked while it can encode prompts."""
    if sampling.resolution is None:
        return model
    resized = getattr(model, "at_resolution", None)
    if resized is None:
        raise UserError(
            f"sampling.resolution={sampling.resolution}: the given {type(model).__name__} draws images of one size "
            "only, for it has no method at_resolution(resolution); take sampling.resolution=None"
        )
    try:
        other = resized(sampling.resolution)
    except UserError as error:
        raise UserError(f"sampling.resolution: {error}") from None
    if other.weights is not model.weights:
        raise UserError(
            f"sampling.resolution={sampling.resolution}: {type(model).__name__}.at_resolution returns a model with "
            "other weights, which would draw what does not train; let it return one with this model's own `weights`"
        )
    return other


def for_evaluation(sampling: Sampling) -> Sampling:
    """Put the guidance and the steps of evaluations in the place of those of rollouts."""
    scale, steps = sampling.eval_guidance_scale, sampling.eval_num_inference_steps
    return replace(
        sampling,
        guidance_scale=sampling.guidance_scale if scale is None else scale,
        num_inference_steps=sampling.num_inference_steps if steps is None else steps,
    )


def chunks(total: int, size: int) -> Iterator[slice]:
    """Cut range(total) into slices of at most `size` rows."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
