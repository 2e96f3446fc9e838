"""Measures the gradient noise scale while gradients are accumulated: nearly free, for the backwards run anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgpo.core.noise_scale import NoiseScale, noise_scale


class GradientMeter:
    """Takes each group's share of the gradient out of `.grad` as it comes, and puts their sum back at the end."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: list[Tensor | None] = [None] * len(parameters)
        self._sq_norms: list[Tensor] = []

    @torch.no_grad()
    def cut(self) -> None:
        """Call after the backward passes of one group."""
        shares = [p.grad for p in self._parameters]
        norms = torch._foreach_norm([share.float() for share in shares if share is not None])
        self._sq_norms.append(torch.stack(norms).square().sum())
        self._sums = [_plus(total, share) for total, share in zip(self._sums, shares)]
        for p in self._parameters:
            p.grad = None

    def finish(self) -> Tensor:
        """Put the whole gradient back; returns the squared norm of each group's share, (n,)."""
        for p, total in zip(self._parameters, self._sums):
            p.grad = total
        return torch.stack(self._sq_norms) if self._sq_norms else torch.empty(0, device=self._parameters[0].device)


@dataclass
class NoiseAverage:
    """Running averages of signal and noise: the ratio of one step's estimates says little. Kept in checkpoints."""

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0
    decay: float = 0.9

    def add(self, sq_norms: Tensor, whole_sq_norm: float, groups: int = 1) -> None:
        """Take in one step's gradient, the sum of n shares.

        sq_norms: (n,) of each share; whole_sq_norm: of the gradient; groups: in each share
        """
        n = len(sq_norms)
        estimate = noise_scale(sq_norms * n**2, whole_sq_norm, groups, n * groups)
        self.count += 1
        rate = max(1 - self.decay, 1 / self.count)  # the plain mean at first
        self.signal += rate * (estimate.signal - self.signal)
        self.noise += rate * (estimate.noise - self.noise)

    @property
    def groups(self) -> float:
        """B_simple: with as many groups a step, signal and noise are equal. Infinite while no signal is seen."""
        return NoiseScale(self.signal, self.noise).scale


def _plus(total: Tensor | None, share: Tensor | None) -> Tensor | None:
    if total is None or share is None:
        return share if total is None else total
    return total.add_(share)
