"""Classifier-free guidance as a line through two velocities, for the families that have no rule of their own."""

from __future__ import annotations

from torch import Tensor


def linear_guidance(v_uncond: Tensor, v_cond: Tensor, scale: float) -> Tensor:
    """`v_uncond + scale (v_cond - v_uncond)` (Ho and Salimans 2022, arXiv 2207.12598)."""
    return v_uncond + scale * (v_cond - v_uncond)
