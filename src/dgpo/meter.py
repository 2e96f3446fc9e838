"""Measures the gradient noise scale while gradients are accumulated: nearly free, for the backwards run anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgpo.core.noise_scale import noise_scale


class GradientMeter:
    """Takes each group's gradient out of `.grad` as it comes, and puts their sum back at the end."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: list[Tensor | None] = [None] * len(parameters)
        self._sq_norms: list[Tensor] = []

    @torch.no_grad()
    def cut(self) -> None:
        """Call after the backward passes of one group."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self._sq_norms.append(_sq_norm(gradients))
        for i, p in enumerate(self._parameters):
            held = self._sums[i]
            self._sums[i] = p.grad if held is None else held if p.grad is None else held.add_(p.grad)
            p.grad = None

    def finish(self) -> tuple[Tensor, Tensor]:
        """Restore the whole gradient; returns each group's squared norm (n,), and that of their sum, ()."""
        for p, total in zip(self._parameters, self._sums):
            p.grad = total
        return torch.stack(self._sq_norms), _sq_norm([s for s in self._sums if s is not None])


@dataclass
class NoiseAverage:
    """Running averages of signal and noise: the ratio of one step's estimates says little. Kept in checkpoints."""

    signal: float = 0.0
    noise: float = 0.0
    decay: float = 0.9

    def add(self, group_sq_norms: Tensor, whole_sq_norm: Tensor) -> None:
        """Squared norms of n groups' shares of the gradient and of their sum, the mean gradient."""
        n = len(group_sq_norms)
        estimate = noise_scale(group_sq_norms * n**2, whole_sq_norm, 1, n)
        self.signal = self.decay * self.signal + (1 - self.decay) * estimate.signal
        self.noise = self.decay * self.noise + (1 - self.decay) * estimate.noise

    @property
    def groups(self) -> float:
        """B_simple: with as many groups a step, signal and noise are equal. Infinite while no signal is seen."""
        return self.noise / self.signal if self.signal > 0 else float("inf")


def _sq_norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.float().square().sum() for t in tensors]).sum()
