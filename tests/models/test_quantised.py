"""The frozen base in 8 or 4 bits: what is stored, what is drawn and trained with it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgpo.config import Config
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.quantised import NF4, QuantisedLinear, count_parameters, quantise


def made(bits: Any, inputs: int, outputs: int) -> tuple[nn.Linear, QuantisedLinear]:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    return layer, QuantisedLinear(layer, bits, torch.float32)


def test_int8_is_off_by_at_most_half_a_step_of_its_row() -> None:
    layer, ours = made("int8", 64, 5)
    steps = layer.weight.abs().amax(1, keepdim=True) / 127
    assert ours.weight.dtype == torch.int8
    assert ((ours.whole() - layer.weight).abs() <= 0.505 * steps).all(), "a hundredth for the rounding of the scale"


def test_whole_numbers_in_int8_come_back_as_they_are() -> None:
    layer = nn.Linear(64, 2, bias=False)
    layer.weight.data = torch.arange(128.0).view(2, 64) - 64
    layer.weight.data[:, 0] = 127  # so that the scale of both rows is 1
    assert torch.equal(QuantisedLinear(layer, "int8", torch.float32).whole(), layer.weight)


def test_nf4_takes_the_nearest_of_sixteen_values_times_the_largest_of_its_block() -> None:
    layer, ours = made("nf4", 64, 4)
    assert ours.weight.dtype == torch.uint8
    assert ours.weight.shape == (64 * 4 // 2,)
    for row, got in zip(layer.weight, ours.whole()):  # a block each
        scale = row.abs().max().to(torch.bfloat16).float()
        values = torch.tensor(NF4) * scale
        nearest = (row[:, None] - values).abs().argmin(1)
        assert torch.equal(got, values[nearest])


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_layer_of_zeros_stays_zero(bits: Any) -> None:
    layer = nn.Linear(64, 2, bias=False)
    layer.weight.data.zero_()
    assert not QuantisedLinear(layer, bits, torch.float32).whole().any()


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_product_and_gradient_are_those_of_the_multiplied_weight(bits: Any) -> None:
    layer, ours = made(bits, 64, 8)
    x, y = torch.randn(3, 64, requires_grad=True), torch.randn(3, 8)
    expected = F.linear(x, ours.whole(), layer.bias)
    got = ours(x)
    assert torch.equal(got, expected)
    assert torch.equal(*(torch.autograd.grad((z * y).sum(), x)[0] for z in (got, expected)))


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_backward_keeps_no_whole_weight(bits: Any) -> None:
    _, ours = made(bits, 64, 8)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours(torch.randn(3, 64, requires_grad=True))
    assert {t.data_ptr() for t in kept} == {ours.weight.data_ptr(), ours.get_buffer("scale").data_ptr()}


@pytest.mark.parametrize(("bits", "per_weight"), [("int8", 1 + 2 / 64), ("nf4", 0.5 + 2 / 64)])
def test_bytes_and_numbers_of_weights(bits: Any, per_weight: float) -> None:
    layer, ours = made(bits, 64, 64)
    tensors = (ours.weight, ours.scale)
    assert sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor)) == 64 * 64 * per_weight
    assert count_parameters(ours) == count_parameters(layer) == 64 * 64 + 64


def test_only_linear_layers_of_blocks_are_quantised() -> None:
    network = nn.ModuleDict(
        {
            "x": nn.Linear(64, 64),
            "blocks": nn.ModuleList([nn.ModuleDict({"a": nn.Linear(64, 64), "n": nn.LayerNorm(64)})]),
        }
    )
    quantise(network, "int8", torch.float32)
    kinds = {name: type(m) for name, m in network.named_modules()}
    assert (kinds["x"], kinds["blocks.0.a"], kinds["blocks.0.n"]) == (nn.Linear, QuantisedLinear, nn.LayerNorm)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_adapters_train_on_it_and_ref_is_the_quantised_base(load: Callable[..., Any], bits: str, dtype: str) -> None:
    model = load(base_precision=bits, dtype=dtype)
    assert any(isinstance(m, QuantisedLinear) for m in model.network.modules())
    x, t = model.init_noise([torch.Generator().manual_seed(0)]), torch.tensor([0.5])
    cond = model.encode(["a cat"])
    v = model.velocity(x, t, cond)
    with torch.no_grad():
        ref = model.velocity(x, t, cond, weights="ref")
    assert torch.equal(v, ref)
    v.pow(2).mean().backward()
    gradients = [p.grad for p in model.weights.parameters()]
    assert any(g is not None and g.any() for g in gradients)
    assert all(p.dtype == torch.float32 for p in model.weights.parameters())
    with torch.no_grad():
        for p in model.weights.parameters():
            p.add_(0.1)
        assert torch.equal(model.velocity(x, t, cond, weights="ref"), ref)
        assert not torch.equal(model.velocity(x, t, cond), ref)


def test_int8_draws_nearly_the_same_and_nf4_less_so() -> None:
    """The embedded network: the share of its velocity that int8 and nf4 change, in fp32 arithmetic."""
    velocities = []
    for bits in ("auto", "int8", "nf4"):
        model: Any = load_model("tiny-sd3", device="cpu", sets=(), base_precision=bits)
        x = model.init_noise([torch.Generator().manual_seed(i) for i in range(4)])
        cond = model.encode(["a red circle"] * 4)
        with torch.no_grad():
            velocities.append(model.velocity(x, torch.full((4,), 0.5), cond))
    plain, int8, nf4 = velocities
    error = [((v - plain).norm() / plain.norm()).item() for v in (int8, nf4)]
    assert error[0] < 0.01 < error[1] < 0.2


def test_gradient_checkpointing_gives_the_same_gradients(load: Callable[..., Any]) -> None:
    gradients = []
    for checkpointing in (False, True):
        each = load(base_precision="int8", gradient_checkpointing=checkpointing)
        x = each.init_noise([torch.Generator().manual_seed(0)])
        each.velocity(x, torch.tensor([0.5]), each.encode(["a cat"])).pow(2).mean().backward()
        gradients.append([p.grad for p in each.weights.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_what_cannot_be_quantised_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match=r"base_precision='int8' stores frozen weights .* finetune='full' trains all"):
        load_model("nowhere", base_precision="int8", finetune="full")
    with pytest.raises(UserError, match="base_precision='int4' is unknown"):
        load_model("nowhere", base_precision="int4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="finetune='full' trains all"):
        Config(base_precision="nf4", finetune="full")
    with pytest.raises(UserError, match="packs weights, which shard='full' would cut"):
        Config(base_precision="nf4", shard="full")
