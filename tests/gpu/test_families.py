"""Every family on the device: pictures of the stock pipeline, bf16, gradients, weight sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from parity import PROMPTS, generators
from tiny_families import TINY, Tiny
from torch import Tensor, nn

from dgpo.models import FAMILIES, load_model

T = torch.tensor([0.9, 0.5, 0.2])
SETS = ("ref", "old", "ema")
Load = Callable[..., Any]


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    """The pipeline's class."""
    return request.param


@pytest.fixture(scope="module")
def tiny(name: str) -> Tiny:
    return TINY[name]


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("family")
    tiny.make().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def load(tiny: Tiny, folder: Path, device: str) -> Load:
    """load_model on the tiny pipeline, onto the device."""

    def load(**settings: Any) -> Any:
        model: Any = load_model(folder, device=device, **{"sets": (), "dtype": "fp32", **tiny.settings, **settings})
        tiny.prepared(model.pipeline)
        return model

    return load


@pytest.fixture(scope="module")
def stock_images(name: str, tiny: Tiny, folder: Path, device: str) -> Callable[..., Tensor]:
    """(dtype, noise, guidance scale) -> pictures of the pipeline as diffusers alone loads it."""

    def stock_images(dtype: torch.dtype, noise: Tensor, guidance_scale: float) -> Tensor:
        absent = dict.fromkeys(tiny.absent)
        pipeline = getattr(diffusers, name).from_pretrained(folder, torch_dtype=dtype, **absent).to(device)
        pipeline.set_progress_bar_config(disable=True)
        return tiny.stock_images(tiny.prepared(pipeline), noise.to(device, dtype), guidance_scale).float()

    return stock_images


def unit_noise(model: Any) -> Tensor:
    """As a stock call takes it. (3, C, h, w), on the CPU."""
    return torch.stack([torch.randn(model.latent_shape, generator=generator) for generator in generators()])


def move(model: Any, far: float) -> None:
    """Weights that some training might have left."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.weights.tensors("policy").values():
        tensor.add_(far * torch.randn(tensor.shape, generator=generator).to(tensor.device))


def away(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().mean().item()


@pytest.mark.usefixtures("exact")
def test_pictures_are_the_stock_pipeline_s(load: Load, stock_images: Callable[..., Tensor], tiny: Tiny) -> None:
    model = load()
    noise = unit_noise(model)
    ours = tiny.images(model, noise.to(model.device), 4, 4.5, PROMPTS)
    stock = stock_images(torch.float32, noise, 4.5)
    assert ours.device.type == model.device.type
    assert stock.std() > 0.05
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("exact")
def test_in_bf16_pictures_are_as_good_as_the_stock_pipeline_s(
    load: Load, stock_images: Callable[..., Tensor], tiny: Tiny
) -> None:
    """Measured from the fp32 pictures: ours err at most half as much again as those of a pipeline in bf16."""
    model = load(dtype="bf16")
    noise = unit_noise(model)
    ours = tiny.images(model, noise.to(model.device), 4, 1.0, PROMPTS)
    best = stock_images(torch.float32, noise, 1.0)
    assert 0 < away(ours, best) < 1.5 * away(stock_images(torch.bfloat16, noise, 1.0), best) + 1e-3


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # fp32 norms of a whole network
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_bf16_is_close_and_trains_fp32_weights(load: Load, tiny: Tiny, finetune: str) -> None:
    exact, rounded = load(**tiny.bf16), load(**tiny.bf16, finetune=finetune, dtype="bf16")
    x, t = exact.init_noise(generators()), torch.tensor(tiny.bf16_t)
    v = rounded.velocity(x, t, rounded.encode(PROMPTS), 2.0)
    trained = list(rounded.weights.parameters())
    grads = torch.autograd.grad(v.square().mean(), trained, allow_unused=True)
    assert v.dtype == torch.float32
    assert {p.dtype for p in trained} == {torch.float32}
    assert any(grad is not None and grad.any() for grad in grads)
    assert all(grad is None or grad.isfinite().all() for grad in grads)
    with torch.no_grad():
        other = exact.velocity(x, t, exact.encode(PROMPTS), 2.0)
    assert 0 < away(v, other) < 0.1 * v.abs().mean()


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # fp32 norms of a whole network
@torch.no_grad()
def test_a_reference_in_bf16_answers_as_the_fp32_weights_that_it_came_from(load: Load, tiny: Tiny) -> None:
    """Bit for bit: CUDA's autocast, too, rounds the policy to the same weights at every call."""
    model = load(**{**tiny.bf16, "sets": ("ref",)}, finetune="full", dtype="bf16")
    x, t, cond = model.init_noise(generators()), torch.tensor(tiny.bf16_t), model.encode(PROMPTS)
    assert torch.equal(model.velocity(x, t, cond, 2.0, "ref"), model.velocity(x, t, cond, 2.0, "policy"))
    assert torch.bfloat16 in {tensor.dtype for tensor in model.weights.tensors("ref").values()}


@torch.no_grad()
def test_an_autoencoder_in_bf16_draws_the_same_pictures_but_for_rounding(load: Load) -> None:
    model, rounded = load(), load(vae_dtype="bf16")
    x0 = unit_noise(model).to(model.device)
    images, other = model.decode(x0), rounded.decode(x0)
    assert 0 < away(other, images) < 0.02 * images.std()
    assert 0 < away(rounded.encode_images(images), latents := model.encode_images(images)) < 0.03 * latents.std()


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_each_weight_set_answers_with_its_own_weights(load: Load, tiny: Tiny, finetune: str) -> None:
    model = load(sets=SETS, finetune=finetune)
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    with torch.no_grad():
        before = model.velocity(x, T, cond)
    move(model, tiny.moved)
    model.weights.ema_update("old", 0.0)
    for weights in SETS:
        v = model.velocity(x, T, cond, weights=weights)
        assert not v.requires_grad
        expected = model.velocity(x, T, cond).detach() if weights == "old" else before
        torch.testing.assert_close(v, expected, rtol=1e-3, atol=1e-3)
    assert (model.velocity(x, T, cond) - before).abs().max() > 0.01


def test_gradient_checkpointing_changes_no_gradient(load: Load, tiny: Tiny) -> None:
    gradients = []
    for again in (False, True):
        model = load(gradient_checkpointing=again, dtype="bf16")
        move(model, tiny.moved)
        model.velocity(model.init_noise(generators()), T, model.encode(PROMPTS)).square().mean().backward()
        gradients.append([p.grad for p in model.weights.parameters() if p.grad is not None])
    assert gradients[0]
    # attention is computed otherwise on CPUs: in fp32 unless it is computed again
    loose = 0.1 if model.device.type == "cpu" else 1e-2
    for plain, again in zip(*gradients):
        assert away(plain, again) <= loose * plain.abs().mean() + 1e-6


def test_all_of_a_model_is_on_the_device(load: Load, device: str) -> None:
    """Also what waited for the text encoders to go."""
    model = load(sets=SETS, encoders_first=True)
    cond = model.encode(PROMPTS)
    model.free_encoders()
    model.velocity(model.init_noise(generators()), T, cond, 2.0)
    modules = [part for part in model.pipeline.components.values() if isinstance(part, nn.Module)]
    assert {p.device.type for module in modules for p in module.parameters()} == {torch.device(device).type}
