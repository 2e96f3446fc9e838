"""The rules of autocast and attention, against torch's own on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo.plan.rules import WIDE_ON_CUDA, Rules
from dgpo.utils.peak_memory import peak_memory

BF16 = torch.bfloat16
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, y: F.linear(x, y),
    "matmul": lambda x, y: x @ y.mT,
    "einsum": lambda x, y: torch.einsum("ab,cb->ac", x, y),
    "conv2d": lambda x, y: F.conv2d(x[None, None], y[None, None, :3, :3]),
    "layer_norm": lambda x, y: F.layer_norm(x, (8,)),
    "group_norm": lambda x, y: F.group_norm(x[None], 2),
    "softmax": lambda x, y: x.softmax(-1),
    "pow": lambda x, y: x**2,
    "add": lambda x, y: x + y,
    "cat": lambda x, y: torch.cat([x, y]),
    "silu": lambda x, y: F.silu(x),
    "mean": lambda x, y: x.mean(),
    "attention": lambda x, y: F.scaled_dot_product_attention(x[None, None], y[None, None], y[None, None]),
}
MIXES = [(torch.float32, torch.float32), (BF16, torch.float32), (BF16, BF16)]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtypes", MIXES)
def test_results_have_the_precision_and_shape_that_autocast_gives_them(
    name: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    function = FUNCTIONS[name]
    with torch.autocast("cpu", BF16):
        theirs = function(*(torch.ones(8, 8, dtype=dtype) for dtype in dtypes))
    with Rules(BF16):
        ours = function(*(torch.ones(8, 8, dtype=dtype, device="meta") for dtype in dtypes))
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "softmax", "pow"])
def test_cuda_computes_norms_and_powers_in_fp32(name: str) -> None:
    x = torch.ones(8, 8, dtype=BF16, device="meta")
    with Rules(BF16, WIDE_ON_CUDA):
        assert FUNCTIONS[name](x, x).dtype == torch.float32
        assert FUNCTIONS["add"](x, x).dtype == BF16


def test_a_trained_weight_is_copied_once_in_a_block() -> None:
    weight, frozen = torch.ones(64, 64, device="meta", requires_grad=True), torch.ones(64, 64, device="meta")
    x = torch.ones(64, 64, dtype=BF16, device="meta")

    def made(weight: Tensor) -> int:
        with peak_memory([x, weight], torch.device("meta")) as peak, Rules(BF16):
            results = [F.linear(x, weight) for _ in range(3)]
        return (peak.bytes - weight.nbytes - x.nbytes) // x.nbytes - len(results)

    assert made(weight) == 1
    with torch.no_grad():
        assert made(frozen) == 1  # one at a time, freed after its use


def test_attention_keeps_no_scores() -> None:
    q, k, v = (torch.ones(2, 4, 1024, 8, device="meta", requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 1, 1, 1024, dtype=torch.bool)
    with Rules(), peak_memory([q, k, v], torch.device("meta")) as peak:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        grouped = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)
        out.sum().backward()
    assert out.shape == grouped.shape == q.shape
    assert q.grad is not None
    assert peak.bytes < 2 * 4 * 1024 * 1024 * 4 / 2
