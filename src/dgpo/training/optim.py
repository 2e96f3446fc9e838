"""The optimizer of a run: AdamW over the trained parameters, its clipping of gradients and its learning rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.config import Config, Optimizer
from dgpo.errors import UserError
from dgpo.models import VelocityModel, WeightSets
from dgpo.models.compiling import require_compiler


def make_optimizer(model: VelocityModel, config: Config) -> torch.optim.Optimizer:
    """AdamW over the policy's parameters."""
    o, parameters = config.optimizer, model.weights.parameters()
    if o.name == "adamw8bit":
        try:
            from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(f"optimizer.name='adamw8bit' needs torchao ({error}): pip install 'dgpo[8bit]'") from error
        require_compiler(model.device, "optimizer.name='adamw8bit'", "take adamw")  # which torchao's step is built with
        return AdamW8bit(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    return torch.optim.AdamW(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True)


def reduce_and_clip(weights: WeightSets, max_norm: float) -> float:
    """Sum the policy's gradients over ranks and clip them to this norm; returns the norm before.

    FSDP has summed those of sharded weights in each backward, and every rank has its rows of them.
    """
    parameters = weights.parameters()
    if not weights.sharded:
        distributed.all_reduce_gradients(parameters)
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    own = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = distributed.all_reduce_sum(own.square()).sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.item()


def set_lr(optimizer: torch.optim.Optimizer, step: int, config: Config) -> float:
    """Set and return the rate of this step, counted from 0."""
    rate = learning_rate(step, config.optimizer)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao compiles the step with it
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return rate


def learning_rate(step: int, o: Optimizer) -> float:
    """Linear warm-up, then half a cosine down to a tenth, or constant."""
    if step < o.warmup_steps:
        return o.lr * (step + 1) / o.warmup_steps
    passed = min(1.0, (step - o.warmup_steps) / o.decay_steps) if o.decay_steps else 0.0
    return o.lr * (1 - 0.9 * (1 - math.cos(math.pi * passed)) / 2)
