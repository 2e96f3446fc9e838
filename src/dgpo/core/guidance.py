"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): `v = v_uncond + s (v_cond - v_uncond)`."""

from __future__ import annotations

from dgpo.errors import UserError


def require_guidance(name: str, scale: float | None) -> None:
    """Refuse a scale s below 1 or NaN. diffusers' model cards write "no guidance" as 0, which here drops the prompt."""
    if scale is not None and not scale >= 1:
        raise UserError(
            f"{name}={scale} cannot work: guidance goes from the velocity without the prompt, at 0, to the one with "
            "it, at 1, and beyond, so that below 1 images do not follow their prompt. It must be at least 1, which is "
            "no guidance; where a model card says guidance_scale=0.0, take 1"
        )
