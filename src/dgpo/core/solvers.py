"""From noise to data: solvers of the flow `dx/dt = v(x, t)`, t from 1 to 0, along a descending grid of sigmas.

All share `solver(velocity_fn, x, sigmas) -> x0`; each names its algorithm. State and velocity are fp32, or float64
if x is. The stochastic sampler is Flow-GRPO's, with a Gaussian density at each step. Its steps are those of an SDE with
the same marginals (arXiv 2505.05470), or of Coefficients-Preserving Sampling (CPS, arXiv 2509.05952), which mixes the
predicted x0 and noise as the next level asks and draws a part of the noise anew. That leaves no noise behind, however
few the steps, but narrows the distribution: much with noise at all steps, little at a few early ones.
Deviation in the SDE: its noise diverges at t = 1, where the authors put the next grid value in the denominator; we
do so from t = 0.998 on, because a grid made for DPM-Solver starts just below 1 and would explode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from dgpo.core.flow import expand, shift_t
from dgpo.core.seeds import randn_rows
from dgpo.errors import UserError, did_you_mean
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor

VelocityFn = Callable[["Tensor", "Tensor"], "Tensor"]  # x (n, *latent), t (n,) in [0, 1] -> velocity (n, *latent)
Noise = Literal["sde", "constant", "cps"]
"""The noise of a stochastic step: Flow-GRPO's SDE, the same with a constant rate (DanceGRPO), or CPS."""
_NEAR_ONE = 0.998


def flow_sigmas(num_steps: int, shift: float = 3.0, t_max: float = 0.999) -> Tensor:
    """An even grid from `t_max` to 0, shifted towards noise: DPM-Solver's grid for flows in diffusers.

    Shifted in fp32, as its Euler scheduler does, which makes the same bits of `numpy.linspace(t_max, 0, n + 1)[:-1]`.
    shift: > 0; t_max: before the shift, in (0, 1], 1 starts at pure noise; returns (num_steps + 1,) fp32, trailing 0.
    """
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps} samples nothing; take at least 1 step.")
    return shift_t(torch.linspace(t_max, 0, num_steps + 1, dtype=torch.float64).float(), shift)


def euler(velocity_fn: VelocityFn, x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler's method, first order, one evaluation a step; DDIM in flow coordinates.

    x: (n, *latent) at sigmas[0]; sigmas: (S + 1,) descending; returns (n, *latent) at sigmas[-1].
    """
    x = _state(x)
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        x = x + (sigma_next - sigma) * _velocity(velocity_fn, x, sigma)
    return x


def heun(velocity_fn: VelocityFn, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun's method, second order, two evaluations a step (Karras et al. 2022, arXiv 2206.00364, algorithm 1).

    The step to 0 is Euler's, which keeps the order and asks for no velocity at t = 0. Arguments as in `euler`.
    """
    x = _state(x)
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        v = _velocity(velocity_fn, x, sigma)
        if sigma_next > 0:
            v = (v + _velocity(velocity_fn, x + (sigma_next - sigma) * v, sigma_next)) / 2
        x = x + (sigma_next - sigma) * v
    return x


def dpm_solver_pp_2m(velocity_fn: VelocityFn, x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M), second order, one evaluation a step (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    The paper's step is `x = (sigma' / sigma) x - alpha' (exp(-h) - 1) D` with h the step in log(alpha / sigma). As
    alpha = 1 - sigma on a flow, that is the weighted mean of x and D below. D extrapolates the x0 predictions to the
    middle of the step; next to sigma = 1 and sigma = 0, where h is infinite, it is the last prediction, as in the
    limit at 1 and as the authors do at 0. Arguments as in `euler`.
    """
    x, x0_before = _state(x), None
    h = -torch.logit(sigmas.cpu().double()).diff()  # (S,)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x0 = d = x - sigma * _velocity(velocity_fn, x, sigma)
        if x0_before is not None and sigma_next > 0:
            d = x0 + float(h[step] / (2 * h[step - 1])) * (x0 - x0_before)
        ratio = sigma_next / sigma
        x, x0_before = ratio * x + (1 - ratio) * d, x0
    return x


SOLVERS: dict[str, Callable[[VelocityFn, Tensor, Tensor], Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
}


def network_calls(solver: str, num_steps: int) -> int:
    """How often a solver asks for a velocity: Heun's method twice a step, but for the last, which is Euler's."""
    return 2 * num_steps - 1 if solver == "heun" else num_steps


def solve(velocity_fn: VelocityFn, x: Tensor, sigmas: Tensor, solver: str = "dpm_solver_pp_2m") -> Tensor:
    """Solve by name. x: (n, *latent) at sigmas[0]; sigmas: (S + 1,) descending; returns (n, *latent) at sigmas[-1]."""
    if solver not in SOLVERS:
        raise UserError(f"There is no solver {solver!r}. {did_you_mean(solver, SOLVERS)}")
    return SOLVERS[solver](velocity_fn, x, sigmas)


def sde_moments(
    x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, noise_level: float = 0.7, noise: Noise = "sde"
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of one stochastic step, differentiable in v.

    sde: `s = noise_level sqrt(t / (1 - t))`, or `noise_level` itself if constant (DanceGRPO, arXiv 2505.07818),
    `dt = t_next - t`, `std = s sqrt(-dt)`, `mean = x (1 + s^2 dt / (2 t)) + v (1 + s^2 (1 - t) / (2 t)) dt`.
    cps: `std = t_next sin(noise_level pi / 2)`, `mean = (1 - t_next) x0 + t_next cos(noise_level pi / 2) eps` with
    `x0 = x - t v` and `eps = x + (1 - t) v`, noise_level in [0, 1].
    x, v: (B, *latent); t > t_next: (B,) in [0, 1]; returns mean (B, *latent), std (B, 1, ..., 1).
    """
    if noise == "cps":
        angle = noise_level * math.pi / 2
        t, t_next = expand(t, x), expand(t_next, x)
        mean = (1 - t_next) * (x - t * v) + t_next * math.cos(angle) * (x + (1 - t) * v)
        return mean, t_next * math.sin(angle)
    if noise not in get_args(Noise):
        raise ValueError(f"noise={noise!r} is no stochastic step; use one of {', '.join(get_args(Noise))}")
    variance_rate = torch.full_like(t, noise_level**2)  # s^2
    if noise == "sde":
        variance_rate = variance_rate * t / (1 - torch.where(t > _NEAR_ONE, t_next, t))
    s2, t, dt = expand(variance_rate, x), expand(t, x), expand(t_next - t, x)
    mean = x * (1 + s2 / (2 * t) * dt) + v * (1 + s2 * (1 - t) / (2 * t)) * dt
    return mean, (s2 * -dt).sqrt()


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log density of x, averaged (not summed) over latent elements, as Flow-GRPO does.

    x, mean: (B, *latent); std: (B, 1, ..., 1) > 0; returns (B,).
    """
    log_density = -((x - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return log_density.flatten(1).mean(1)


def step_log_prob(x: Tensor, mean: Tensor, std: Tensor, noise: Noise = "sde") -> Tensor:
    """What stands for the log density of a step: the density itself, or for CPS its authors' `-(x - mean)^2`.

    They drop the variance as well, so that each step weighs `2 std^2` times what its density would.
    Arguments and value as in `gaussian_log_prob`; std may be 0 for CPS.
    """
    return -((x - mean) ** 2).flatten(1).mean(1) if noise == "cps" else gaussian_log_prob(x, mean, std)


def sde_step(
    x: Tensor,
    v: Tensor,
    t: Tensor,
    t_next: Tensor,
    drawn: Tensor,
    noise_level: float = 0.7,
    noise: Noise = "sde",
) -> tuple[Tensor, Tensor]:
    """One stochastic step and its `step_log_prob`. Arguments as in `sde_moments`, noise_level > 0.

    drawn: (B, *latent) standard normal; returns x at t_next (B, *latent), log_prob (B,).
    """
    mean, std = sde_moments(x, v, t, t_next, noise_level, noise)
    x_next = mean + std * drawn
    return x_next, step_log_prob(x_next, mean, std, noise)


def sde_solve(
    velocity_fn: VelocityFn,
    x: Tensor,
    sigmas: Tensor,
    generators: Sequence[torch.Generator],
    noise_level: float = 0.7,
    window: range | None = None,
    noise: Noise = "sde",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample with noise at every step, or only at the steps in `window`, Euler's elsewhere (MixGRPO, arXiv 2507.21802).

    x: (B, *latent) at sigmas[0]; generators: B, one per image; returns x0 (B, *latent), latents (B, S + 1, *latent)
    with x first and x0 last, log_probs (B, S), 0 for Euler's steps.
    """
    latents, log_probs = [_state(x)], []
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        x = latents[-1]
        v, log_prob = _velocity(velocity_fn, x, sigma), x.new_zeros(len(x))
        if window is None or step in window:
            drawn = randn_rows(generators, x.shape[1:]).to(x)
            t, t_next = x.new_full((len(x),), sigma), x.new_full((len(x),), sigma_next)
            x, log_prob = sde_step(x, v, t, t_next, drawn, noise_level, noise)
        else:
            x = x + (sigma_next - sigma) * v
        latents.append(x)
        log_probs.append(log_prob)
    return latents[-1], torch.stack(latents, 1), torch.stack(log_probs, 1)


def _state(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _velocity(velocity_fn: VelocityFn, x: Tensor, sigma: float) -> Tensor:
    return velocity_fn(x, x.new_full((len(x),), sigma)).to(x.dtype)
