"""What eager PyTorch does between a function's call and its operators, said again for the meta device.

torch.autocast knows no meta device: its lists for CUDA and for the CPU are applied here by the names of functions.
Attention, for which the meta device would make the matrix of scores, is one kernel as on other devices: it keeps
queries, keys, values, its result and a number for each query.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_NARROW = frozenset(
    (
        *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        "scaled_dot_product_attention",
    )
)
WIDE_ON_CUDA = frozenset(
    (
        *("layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax", "softplus", "norm", "cosine_similarity"),
        *("pow", "__pow__", "__rpow__", "rsqrt", "reciprocal", "exp", "expm1", "log"),
        *("sum", "prod", "cumsum", "cumprod", "mse_loss", "l1_loss", "smooth_l1_loss", "interpolate"),
    )
)
"""Functions that autocast computes in fp32 on CUDA; on the CPU they take what they are given."""


class Rules(TorchFunctionMode):
    """Autocast by the names of functions, with one narrow copy of a trained weight for the whole block; and attention
    as one kernel."""

    def __init__(self, dtype: torch.dtype | None = None, wide: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._dtype, self._wide = dtype, wide
        self._copies: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self._dtype is not None and name in _NARROW:
            args, kwargs = tree_map_only(Tensor, self._narrow, (args, kwargs))
        elif self._dtype is not None and name in self._wide:
            args, kwargs = tree_map_only(Tensor, _widen, (args, kwargs))
        return _fused_attention(*args, **kwargs) if name == "scaled_dot_product_attention" else func(*args, **kwargs)

    def _narrow(self, tensor: Tensor) -> Tensor:
        assert self._dtype is not None
        if tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self._dtype)
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor.to(self._dtype)
        return self._copies[id(tensor)]


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """F.scaled_dot_product_attention as one kernel. (..., H, L, D) tensors; a mask costs nothing of its own here."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    batch = query.shape[:-3]
    q, k, v = (t.reshape(-1, *t.shape[-3:]) for t in (query, key, value))
    keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(q, k, v, None, keeps, dropout_p, is_causal, scale=scale)[0].reshape(*batch, *query.shape[-3:-1], -1)
