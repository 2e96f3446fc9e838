"""The gradient noise scale: how many samples a step needs before more of them stop paying.

McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1, from squared norms of a small and a whole batch's gradient:
    |G|^2     = (B_whole |g_whole|^2 - B_small |g_small|^2) / (B_whole - B_small)
    tr(Sigma) = (|g_small|^2 - |g_whole|^2) / (1 / B_small - 1 / B_whole)
are unbiased, and B_simple = tr(Sigma) / |G|^2.
Count B in independent samples: for a loss that couples a group, in groups, with whole groups in each micro-batch.
Deviation: both estimates are returned, since their ratio is biased and should be taken of averages over several steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class NoiseScale(NamedTuple):
    """Unbiased estimates from one step, or averages of them, which `scale` should be read of."""

    signal: float  # |G|^2, the true gradient's squared norm; may come out negative when noise rules
    noise: float  # tr(Sigma), the variance of one sample's gradient

    @property
    def scale(self) -> float:
        """B_simple in samples; infinite where no signal was seen."""
        return self.noise / self.signal if self.signal > 0 else math.inf


def noise_scale(
    micro_sq_norms: Tensor, whole_sq_norm: float | Tensor, micro_size: float, whole_size: float
) -> NoiseScale:
    """Signal and noise of one step's gradient.

    micro_sq_norms: (n,) squared norms of each micro-batch's own mean gradient; whole_sq_norm: of the whole batch's
    mean gradient; micro_size < whole_size: samples in each.
    """
    if not 0 < micro_size < whole_size:
        raise ValueError(f"micro_size={micro_size} must be positive and below whole_size={whole_size}")
    small, whole = float(micro_sq_norms.cpu().double().mean()), float(whole_sq_norm)
    signal = (whole_size * whole - micro_size * small) / (whole_size - micro_size)
    noise = (small - whole) / (1 / micro_size - 1 / whole_size)
    return NoiseScale(signal, noise)
