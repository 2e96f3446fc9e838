"""Losses between velocities, one value per image; an algorithm reduces them once, in its own `loss`.

`dsm = mean over latent elements of (v - target)^2` is the denoising score matching loss at one (t, noise). By the ELBO,
`-dsm` stands for the log-likelihood of an image, so `exp(dsm_old - dsm)` stands for a likelihood ratio.
Squares are taken in fp32, or in float64 where that is given: beta and the clip act on small differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_ERROR = 1e-5


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """a, b: (B, *latent); returns (B, *latent). Shapes must agree: a broadcast would average over other images."""
    if a.shape != b.shape:
        raise ValueError(f"tensors of shape {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
    dtype = torch.promote_types(torch.float32, torch.promote_types(a.dtype, b.dtype))
    return a.to(dtype) - b.to(dtype)


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    """a, b: (B, *latent); returns (B,)."""
    return _difference(a, b).square().flatten(1).mean(1)


def dsm_loss(v: Tensor, target: Tensor) -> Tensor:
    """`mean (v - target)^2`. v, target: (B, *latent); returns (B,) fp32 >= 0."""
    return _mean_square(v, target)


def self_normalized(a: Tensor, b: Tensor) -> Tensor:
    """`mean (a - b)^2 / mean |a - b|`, where the divisor carries no gradient: large errors weigh less.

    a, b: (B, *latent); returns (B,) fp32 >= 0.
    """
    error = _difference(a, b)
    size = error.detach().abs().flatten(1).mean(1).clamp(min=SMALLEST_ERROR)
    return error.square().flatten(1).mean(1) / size


def velocity_kl(v: Tensor, v_ref: Tensor) -> Tensor:
    """`mean (v - v_ref)^2`, the KL divergence of two flows up to a weight in t.

    v, v_ref: (B, *latent); returns (B,) fp32 >= 0.
    """
    return _mean_square(v, v_ref)


def dsm_clip_mask(dsm: Tensor, dsm_old: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Images that have already moved far enough from `old` in the direction of their advantage.

    dsm, dsm_old, advantages: (B,); returns (B,) bool, True: must contribute no gradient.
    """
    return clip_mask(torch.exp(dsm_old - dsm).detach(), advantages, clip_range)


def clip_mask(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Where a ratio has left [1 - c, 1 + c] in its advantage's direction. All (B,); returns (B,) bool."""
    return torch.where(advantages > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """`max(-A ratio, -A clip(ratio, 1 - c, 1 + c))` (PPO, arXiv 1707.06347, eq. 7), to be minimised.

    ratio, advantages: (B,); returns (B,).
    """
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range))


def gaussian_kl(mean: Tensor, mean_ref: Tensor, std: Tensor) -> Tensor:
    """KL divergence of two Gaussians of equal deviation, `(mean - mean_ref)^2 / (2 std^2)`, averaged over elements.

    mean, mean_ref: (B, *latent); std: (B, 1, ..., 1) > 0; returns (B,).
    """
    return _mean_square(mean, mean_ref) / (2 * std.flatten().square())
