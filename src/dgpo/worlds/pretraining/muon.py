"""Muon (Jordan et al. 2024) for the matrices of a small transformer, one batch per shape.

The momentum of each matrix is replaced by its nearest orthogonal matrix (five Newton-Schulz steps) and scaled to the
size of an AdamW update (Liu et al. 2025, arXiv 2502.16982), so that both share a learning rate. torch.optim.Muon does
the same one matrix at a time and always in bf16, which takes several times longer on CPUs without bf16 units.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised. Two-dimensional parameters only."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        bf16: bool = False,
    ):
        self.dtype = torch.bfloat16 if bf16 else torch.float32  # of the iteration; weights and momenta stay fp32
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                self._step_batch(same, group["lr"], group["momentum"], group["weight_decay"])

    def _step_batch(self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        for buffer, gradient in zip(buffers, gradients):
            buffer.lerp_(gradient, 1 - momentum)
        ahead = torch.stack([gradient.lerp(buffer, momentum) for buffer, gradient in zip(buffers, gradients)])
        updates = orthogonalise(ahead.to(self.dtype)).float() * (0.2 * max(ahead.shape[1:]) ** 0.5)
        for p, update in zip(parameters, updates):
            p.mul_(1 - lr * weight_decay).sub_(update, alpha=lr)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(n, a, b) -> (n, a, b): singular values moved to about 1 by a quintic Newton-Schulz iteration."""
    wide = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if wide else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if wide else x
