"""A frozen base in 8 or 4 bits under LoRA adapters, as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

- int8: a whole number from -127 to 127 for each weight, and a scale for each row (output).
- nf4: one of sixteen quantiles of the normal distribution (the paper's appendix E) for each weight, and a scale for
each 64 weights. The paper also quantises the scales; here they stay bf16.

Only the linear layers of the network's repeated blocks are quantised: they hold nearly all weights. Weights are
multiplied back, layer by layer, in every forward and again in backward, so no more than one layer is ever whole.

Written in plain PyTorch and not with torchao or bitsandbytes: under autocast torchao's int8 weights multiply in the
precision of the input, which is often fp32, and a backward keeps the multiplied copy of every layer; bitsandbytes has
nf4 only on the GPUs it was compiled for. Here every device has both, `dgpo plan` counts them with the same code, and
what is drawn depends on PyTorch alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BasePrecision = Literal["auto", "int8", "nf4"]
BLOCK = 64
"""Weights of one nf4 scale."""
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is stored in 8 or 4 bits."""

    def __init__(self, layer: nn.Linear, bits: Literal["int8", "nf4"], dtype: torch.dtype) -> None:
        """dtype: what it computes in."""
        nn.Module.__init__(self)  # without the weight that nn.Linear would make
        self.in_features, self.out_features, self.compute = layer.in_features, layer.out_features, dtype
        stored, scale = (_to_int8 if bits == "int8" else _to_nf4)(layer.weight.detach())
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features) in the layer's own dtype."""
        shape = self.out_features, self.in_features
        return _Product.apply(x.to(self.compute), self.weight, self.scale, self.bias, shape)

    def whole(self) -> Tensor:
        """(out_features, in_features) the weight that the layer computes with."""
        assert isinstance(self.scale, Tensor)
        return _multiplied(self.weight, self.scale, (self.out_features, self.in_features), self.compute)

    def __repr__(self) -> str:
        kind = "int8" if self.weight.dtype == torch.int8 else "nf4"
        return f"QuantisedLinear({self.in_features}, {self.out_features}, {kind})"


def quantise(network: nn.Module, bits: Literal["int8", "nf4"], dtype: torch.dtype) -> None:
    """Replace the linear layers of a network's blocks, in place and one after another."""
    for name, layer in list(network.named_modules()):
        in_block = any(word.isdigit() for word in name.split(".")[:-1])
        if type(layer) is nn.Linear and in_block and layer.weight.numel() % BLOCK == 0:
            owner, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(owner), leaf, QuantisedLinear(layer, bits, dtype))


def count_parameters(network: nn.Module) -> int:
    """The weights of a network but for adapters; two to each byte of nf4."""
    own = (p for name, p in network.named_parameters() if "lora_" not in name)
    return sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in own)


class _Product(torch.autograd.Function):
    """x W^T + b, which keeps no whole W for backward. W is frozen, so there is a gradient of x only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, shape: Any) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.shape = shape
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(x, _multiplied(weight, scale, shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, scale = ctx.saved_tensors
        return gradients[0] @ _multiplied(weight, scale, ctx.shape, gradients[0].dtype), None, None, None, None


def _multiplied(weight: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """`shape` in `dtype`: what is stored, times its scale, which bf16 holds exactly."""
    if weight.dtype == torch.int8:
        return weight.to(dtype).mul_(scale)
    return F.embedding(weight.int(), _pairs(dtype, weight.device)).view(-1, BLOCK).mul_(scale).view(shape)


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256, 2), the two weights of a byte. Made once: a copy from the host in every call would wait for the GPU."""
    values = torch.tensor(NF4, dtype=dtype, device=device)
    return torch.stack([values.repeat_interleave(16), values.repeat(16)], 1)


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) int8 and (out, 1) bf16."""
    scale = _scale(weight.float(), 127)
    return (weight.float() / scale.float()).round_().clamp_(-127, 127).to(torch.int8), scale


def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out * in / 2,) uint8, the first of two weights in the high bits, and (out * in / 64, 1) bf16."""
    blocks = weight.float().reshape(-1, BLOCK)
    scale = _scale(blocks, 1)
    values = torch.tensor(NF4, device=weight.device)
    nearest = torch.bucketize(blocks / scale.float(), (values[1:] + values[:-1]) / 2).view(-1, 2)
    return (nearest[:, 0] * 16 + nearest[:, 1]).to(torch.uint8), scale


def _scale(rows: Tensor, largest: int) -> Tensor:
    """(n, 1) bf16: what makes the largest weight of each row `largest`, and 1 where all are 0."""
    scale = (rows.abs().amax(1, keepdim=True) / largest).to(torch.bfloat16)
    return torch.where(scale == 0, torch.ones_like(scale), scale)
