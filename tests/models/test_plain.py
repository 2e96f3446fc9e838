"""Drawing in plain bf16: near enough, nothing of an adapter lost, and everything as before afterwards."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import PROMPTS, generators
from runs import save_pipeline, small
from tiny_families import TINY
from torch import Tensor

from dgpo import FlowGRPO, load_model
from dgpo.models import FAMILIES, LoraConfig
from dgpo.models.pipeline import PipelineModel
from dgpo.plan.rules import WIDE_ON_CUDA, Rules


def moved(model: Any, far: float) -> Any:
    """With an adapter that some training might have left."""
    rng = torch.Generator().manual_seed(0)
    for tensor in model.weights.tensors("policy").values():
        tensor.add_(far * torch.randn(tensor.shape, generator=rng))
    return model


@torch.no_grad()
def answer(model: Any, t: Tensor, weights: str = "policy", drawing: bool = False) -> Tensor:
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    if not drawing:
        return model.velocity(x, t, cond, 2.0, weights)
    with model.drawing(weights):
        return model.velocity(x, t, cond, 2.0, weights)


class AutocastOfCUDA(Rules):
    """In the place of torch.autocast: what it does on CUDA, by its lists, on the CPU."""

    def __init__(self, *_: Any, enabled: bool, **__: Any) -> None:
        super().__init__(torch.bfloat16 if enabled else None, WIDE_ON_CUDA)


@pytest.fixture(params=["cpu", "cuda, imitated"])
def autocast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "cpu":
        monkeypatch.setattr(torch, "autocast", AutocastOfCUDA)
        monkeypatch.setattr("dgpo.models.pipeline.Fp32Attention", nullcontext)
        monkeypatch.setattr("dgpo.plan.rules._fused_attention", torch.nn.functional.scaled_dot_product_attention)


@pytest.mark.usefixtures("autocast")
@pytest.mark.parametrize("name", FAMILIES)
def test_plain_velocities_err_no_more_than_those_under_autocast(name: str, tmp_path: Path) -> None:
    """Measured from fp32. Half as much again is allowed, for single tiny networks scatter."""
    tiny = TINY[name]
    tiny.make().save_pretrained(tmp_path)
    settings = {**tiny.settings, **tiny.bf16, "sets": ("ref",), "device": "cpu"}
    exact = moved(load_model(tmp_path, **settings), tiny.moved)
    rounded = moved(load_model(tmp_path, **settings, dtype="bf16"), tiny.moved)
    t = torch.tensor(tiny.bf16_t)
    for weights in ("policy", "ref"):
        expected = answer(exact, t, weights)
        errors = [(answer(rounded, t, weights, way) - expected).abs().mean() for way in (False, True)]
        assert 0 < errors[1] < 1.5 * errors[0]
        assert errors[1] < 0.1 * expected.abs().mean()


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return moved(load_model(save_pipeline(tmp_path / "tiny"), device="cpu", dtype="bf16"), 0.1)


T = torch.tensor([0.9, 0.5, 0.2])


def test_a_young_adapter_acts_though_bf16_weights_could_not_hold_it(tmp_path: Path) -> None:
    """Its product is a thousandth of the weights: merged in bf16 it would be rounded away. Alone it is a 250th off."""
    folder = save_pipeline(tmp_path / "tiny")
    model: Any = load_model(folder, device="cpu", dtype="bf16", lora=LoraConfig(rank=4, alpha=4))
    layer = model.network.transformer_blocks[0].attn.to_q
    base, a, b = layer.base_layer.weight, layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        b.copy_(torch.randn(b.shape, generator=rng))
        b.mul_(1e-3 * base.float().norm() / (b @ a).norm())
        merged = (base + b @ a).to(base.dtype)
        assert (merged == base).float().mean() > 0.8
        x = torch.randn(8, base.shape[1], generator=rng)
        added = layer.lora_B["policy"](layer.lora_A["policy"](x))
        with model.drawing("policy"):
            narrow = layer.lora_B["policy"](layer.lora_A["policy"](x.bfloat16())).float()
    assert (narrow - added).norm() < 0.02 * added.norm()


def test_outside_of_the_block_everything_is_as_before(model: Any) -> None:
    before, parameters = answer(model, T), {key: id(p) for key, p in model.network.named_parameters()}

    class Stop(Exception):
        pass

    def stopped() -> None:
        with torch.no_grad(), model.drawing("old"):
            dtypes = {p.dtype for key, p in model.network.named_parameters() if ".old." in key or "lora_" not in key}
            assert dtypes == {torch.bfloat16}
            raise Stop

    with pytest.raises(Stop):
        stopped()
    assert {key: id(p) for key, p in model.network.named_parameters()} == parameters
    assert not model.network._forward_pre_hooks
    assert torch.equal(answer(model, T), before)


def test_the_copies_are_of_the_weights_as_they_are_now(model: Any) -> None:
    first = answer(model, T, drawing=True)
    moved(model, 0.1)
    assert not torch.equal(answer(model, T, drawing=True), first)
    assert torch.equal(answer(model, T, "old", drawing=True), answer(model, T, "ema", drawing=True))


@pytest.mark.parametrize("settings", [{"dtype": "fp32"}, {"dtype": "bf16", "finetune": "full"}])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_in_fp32_and_where_all_weights_train_nothing_is_different(settings: Any, tmp_path: Path) -> None:
    model = load_model(save_pipeline(tmp_path / "tiny"), device="cpu", **settings)
    assert torch.equal(answer(model, T, drawing=True), answer(model, T))


def test_with_gradient_nothing_is_different(model: Any) -> None:
    with model.drawing("policy"):
        assert not model.draws_plain
        assert model.velocity(model.init_noise(generators()), T, model.encode(PROMPTS)).requires_grad


@pytest.mark.parametrize("algorithm", [None, FlowGRPO()])
def test_rollouts_are_plain_and_what_an_update_compares_is_not(
    algorithm: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy gradient compares a rollout's path with its update, so that it rounds both alike."""
    import runs

    ways: dict[bool, set[str]] = {False: set(), True: set()}
    velocity = PipelineModel.velocity

    def heard(model: Any, x: Tensor, t: Tensor, cond: Any, scale: float = 1.0, weights: str = "policy") -> Tensor:
        ways[model.draws_plain].add(f"{weights} trains" if torch.is_grad_enabled() else weights)
        return velocity(model, x, t, cond, scale, weights)

    monkeypatch.setattr(PipelineModel, "velocity", heard)
    changes = {} if algorithm is None else {"algorithm": algorithm}
    runs.run(small(tiny_folder, tmp_path / "run", dtype="bf16", iterations=2, micro_batch_size=2, **changes))
    assert "policy trains" in ways[False]
    assert "ref" in ways[False]
    assert ways[True] == ({"policy"} if algorithm is None else set())
