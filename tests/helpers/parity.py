"""Our walk against the stock pipeline: the same noise through both, picture by picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgpo.core.solvers import solve

PROMPTS = ["a red cat", "two dogs", "a cup left of a hat"]


def generators(n: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


@torch.no_grad()
def our_images(model: Any, noise: Tensor, num_steps: int, guidance_scale: float, prompts: list[str]) -> Tensor:
    """Encode, walk by Euler over the grid of the pipeline's own scheduler, decode: (n, 3, H, W) in [0, 1]."""
    cond = model.encode(prompts)
    x0 = solve(
        lambda x, t: model.velocity(x, t, cond, guidance_scale), noise, model.scheduler_sigmas(num_steps), "euler"
    )
    return model.decode(x0)


def assert_same_pictures(ours: Tensor, stock: Tensor, shape: tuple[int, ...]) -> None:
    """Equal up to fp32 rounding, and pictures rather than a flat colour."""
    assert ours.shape == shape
    assert stock.std() > 0.05
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)
