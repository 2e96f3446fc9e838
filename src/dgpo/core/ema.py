"""Exponential moving averages of weights: `old`, a fast one that samples, and `ema`, a slow one that is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor


def ema_update(target: Iterable[Tensor], source: Iterable[Tensor], decay: float) -> None:
    """`target = decay * target + (1 - decay) * source`, in place, in one fused call; decay 0 copies exactly.

    target, source: equally many tensors of equal shapes; decay: in [0, 1].
    """
    target = list(target)
    source = [new.to(old) for old, new in zip(target, source, strict=True)]
    with torch.no_grad():
        torch._foreach_lerp_(target, source, 1 - decay)


def warmup_decay(step: int, rate: float = 0.001, max_decay: float = 0.3) -> float:
    """`min(max_decay, rate * step)`: a copy at step 0, slower as the policy settles."""
    return min(max_decay, rate * step)
