"""Attention under bf16 autocast on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class Fp32Attention(TorchFunctionMode):
    """`with Fp32Attention():` fused attention is computed in fp32 and its result rounded to what was asked.

    PyTorch's backward pass of bf16 attention takes several times longer on CPUs than that of fp32, which undoes what
    bf16 saves in matrix products (benchmarks/speedups.py).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {} if kwargs is None else kwargs
        asked = (args[0] if args else named["query"]).dtype
        with torch.autocast("cpu", enabled=False):
            return func(*map(_fp32, args), **{name: _fp32(value) for name, value in named.items()}).to(asked)


def _fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
