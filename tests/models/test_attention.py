"""Attention in fp32 under bf16 autocast: what it computes, and that nothing else changes."""

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from dgpo.models.attention import Fp32Attention


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("mask", [None, draw(5, 5).bfloat16(), draw(5, 5) > 0], ids=["none", "float", "bool"])
def test_only_inputs_and_result_are_rounded(mask: torch.Tensor | None) -> None:
    query, key, value = (x.bfloat16() for x in draw(3, 2, 3, 5, 8))
    wide = mask.float() if mask is not None and mask.is_floating_point() else mask
    exact = scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=wide)
    with torch.autocast("cpu", torch.bfloat16), Fp32Attention():
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        product = linear(query.float(), draw(4, 8))
        named = scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask)
    assert torch.equal(found, exact.bfloat16())
    assert torch.equal(named, found)
    assert product.dtype == torch.bfloat16, "autocast goes on around it"


def test_gradients_are_those_of_fp32_attention() -> None:
    inputs = [x.bfloat16().requires_grad_() for x in draw(3, 2, 3, 5, 8)]
    with torch.autocast("cpu", torch.bfloat16), Fp32Attention():
        rounded = torch.autograd.grad(scaled_dot_product_attention(*inputs).float().square().sum(), inputs)
    expected = torch.autograd.grad(
        scaled_dot_product_attention(*(x.float() for x in inputs)).bfloat16().float().square().sum(), inputs
    )
    for one, other in zip(rounded, expected):
        assert torch.equal(one, other)


def test_outside_it_attention_is_as_ever() -> None:
    query = draw(2, 3, 5, 8).bfloat16()
    before = scaled_dot_product_attention(query, query, query)
    with Fp32Attention():
        pass
    assert torch.equal(scaled_dot_product_attention(query, query, query), before)


def test_it_works_in_compiled_code() -> None:
    module = torch.nn.Linear(8, 8)

    def attend(x: torch.Tensor) -> torch.Tensor:
        projected = module(x)
        return scaled_dot_product_attention(projected, projected, projected)

    x = draw(2, 3, 5, 8)
    with torch.autocast("cpu", torch.bfloat16), Fp32Attention(), torch.no_grad():
        assert torch.equal(torch.compile(attend, backend="eager", fullgraph=True)(x), attend(x))
