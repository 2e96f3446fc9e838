"""Where along the path to train: draws of t in [t_min, t_max], never below t_min (DGPO's timestep clip).

A few-step sampler's images carry artefacts in their fine detail, which is what small t would teach. Every function
returns (num_points,) fp32 from its own generator on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo.errors import UserError
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor


def grid_draws(sigmas: Tensor, trunc_steps: int, num_points: int, generator: torch.Generator) -> Tensor:
    """`num_points` of the sampler's own first `trunc_steps + 1` noise levels, without replacement.

    sigmas: (S + 1,) descending, trailing 0; returns (num_points,) values of sigmas.
    """
    num_steps = len(sigmas) - 1
    if trunc_steps + 1 > num_steps:
        raise UserError(
            f"trunc_steps={trunc_steps} draws from the first {trunc_steps + 1} noise levels of a rollout that has "
            f"{num_steps}. Lower trunc_steps to at most {num_steps - 1}, or take more inference steps."
        )
    if num_points > trunc_steps + 1:
        raise UserError(
            f"num_points={num_points} cannot be drawn without replacement from trunc_steps + 1 = {trunc_steps + 1} "
            "noise levels. Lower num_points, raise trunc_steps, or take t_sampling='uniform'."
        )
    return sigmas.cpu().float()[torch.randperm(trunc_steps + 1, generator=generator)[:num_points]]


def uniform_draws(num_points: int, t_min: float, t_max: float, generator: torch.Generator) -> Tensor:
    """Independent, uniform in [t_min, t_max]. Returns (num_points,)."""
    return _between(torch.rand(num_points, generator=generator, dtype=torch.float64), t_min, t_max)


def stratified_draws(num_points: int, t_min: float, t_max: float, generator: torch.Generator) -> Tensor:
    """One uniform draw from each of `num_points` equal parts of [t_min, t_max]. Returns (num_points,) ascending."""
    within = torch.rand(num_points, generator=generator, dtype=torch.float64)
    return _between((torch.arange(num_points) + within) / num_points, t_min, t_max)


def logit_normal_draws(
    num_points: int, t_min: float, t_max: float, generator: torch.Generator, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """`t = sigmoid(mean + std z)`, z normal (Esser et al. 2024, arXiv 2403.03206), conditioned on [t_min, t_max].

    Drawn through the inverse distribution function, so that nothing is rejected or clamped. Returns (num_points,).
    """
    z = (torch.logit(torch.tensor([t_min, t_max], dtype=torch.float64)) - mean) / std
    low, high = torch.special.ndtr(z)
    u = torch.rand(num_points, generator=generator, dtype=torch.float64)
    t = torch.sigmoid(mean + std * torch.special.ndtri(low + (high - low) * u))
    return t.clamp(t_min, t_max).float()  # ndtri rounds at the ends


def linear_draws(num_points: int, t_min: float, t_max: float, generator: torch.Generator) -> Tensor:
    """Independent, with a density proportional to t on [t_min, t_max]. Returns (num_points,)."""
    u = torch.rand(num_points, generator=generator, dtype=torch.float64)
    return (t_min**2 + (t_max**2 - t_min**2) * u).sqrt().clamp(t_min, t_max).float()


DRAWS = {
    "uniform": uniform_draws,
    "stratified": stratified_draws,
    "logit_normal": logit_normal_draws,
    "linear": linear_draws,
}


def _between(u: Tensor, t_min: float, t_max: float) -> Tensor:
    """u: (n,) in [0, 1]; returns (n,) fp32 in [t_min, t_max]."""
    return (t_min + (t_max - t_min) * u).float()
