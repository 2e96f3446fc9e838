"""Flow-matching coordinates, and the change of coordinates that makes every Gaussian diffusion model a flow model.

The path is a straight line from data to noise (arXiv 2209.03003, 2210.02747): `x_t = (1 - t) x0 + t noise`,
`velocity = noise - x0`, t in [0, 1], t = 1 pure noise; t equals the schedulers' sigma.
A variance-preserving model has `x_vp = alpha x0 + sigma noise`. Dividing by `alpha + sigma` puts it on that line at
`t = sigma / (alpha + sigma)`, exactly, so that one velocity contract serves both kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T", float, "Tensor")


def expand(t: Tensor, like: Tensor) -> Tensor:
    """One number per image, shaped to broadcast over its latent.

    t: (B,); like: (B, *latent); returns (B, 1, ..., 1).
    """
    return t.reshape(-1, *[1] * (like.ndim - 1))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """`x_t = (1 - t) x0 + t noise`.

    x0, noise: (B, *latent); t: (B,) in [0, 1]; returns (B, *latent).
    """
    t = expand(t, x0)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """`noise - x0`, what the velocity network regresses to. All (B, *latent)."""
    return noise - x0


def x0_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """`x0 = x_t - t v`. x_t, v: (B, *latent); t: (B,) in [0, 1]; returns (B, *latent)."""
    return x_t - expand(t, x_t) * v


def shift_t(t: T, shift: float) -> T:
    """`shift t / (1 + (shift - 1) t)`: spend more steps near noise, as large images need (Esser et al. 2024, eq. 23).

    t: any shape, in [0, 1]; shift: > 0, 1 changes nothing; returns the same shape, in [0, 1].
    """
    return shift * t / (1 + (shift - 1) * t)


def flow_to_vp(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """`x_vp = (alpha + sigma) x_t`: the state that a variance-preserving network reads.

    x_t: (B, *latent); alpha, sigma: (B,) with t = sigma / (alpha + sigma); returns (B, *latent).
    """
    return x_t * expand(alpha + sigma, x_t)


def velocity_from_eps(x_vp: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """`v = eps - x0` with `x0 = (x_vp - sigma eps) / alpha`: the velocity that a noise prediction implies.

    x_vp, eps: (B, *latent); alpha: (B,) > 0; sigma: (B,) >= 0; returns (B, *latent).
    """
    return eps - (x_vp - expand(sigma, x_vp) * eps) / expand(alpha, x_vp)
