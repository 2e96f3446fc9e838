from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny_z_image import save_tiny_z_image
from torch import nn

from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.z_image import ZImage

T = torch.tensor([0.9, 0.5, 0.2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_z_image(tmp_path_factory.mktemp("models") / "z-image")


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Callable[..., Any]:
    """load_model on the tiny pipeline; its own resolution, 1024, is too much for a test."""
    return lambda **settings: load_model(folder, device="cpu", **{"resolution": 64, **settings})


@pytest.fixture(scope="module")
def load(fresh: Callable[..., Any]) -> Callable[..., Any]:
    """The same, once per settings: for tests that leave the model as it was."""
    return functools.cache(fresh)


@pytest.fixture(scope="module")
def reload(folder: Path) -> Callable[[], Any]:
    """The pipeline as diffusers alone loads it."""

    def reload() -> Any:
        pipeline = ZImagePipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return reload


@pytest.fixture(scope="module")
def stock(reload: Callable[[], Any]) -> Any:
    return reload()


def stock_images(stock: Any, noise: torch.Tensor, guidance_scale: float, **settings: Any) -> torch.Tensor:
    """A stock call; guidance_scale is ours, so that diffusers' is one less."""
    side = noise.shape[-1] * 8
    return stock(
        prompt=list(PROMPTS),
        latents=noise,
        num_inference_steps=4,
        guidance_scale=guidance_scale - 1,
        height=side,
        width=side,
        output_type="pt",
        **settings,
    ).images


@pytest.mark.parametrize("resolution", [64, 96])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_our_walk_on_the_scheduler_grid_draws_the_stock_pictures(load, stock, resolution, guidance_scale):
    model = load(resolution=resolution)
    noise = model.init_noise(generators())
    ours = our_images(model, noise, 4, guidance_scale, PROMPTS)
    assert_same_pictures(ours, stock_images(stock, noise, guidance_scale), (3, 3, resolution, resolution))


def test_normalised_guidance_is_the_stock_one(fresh, stock):
    model = fresh()
    noise = model.init_noise(generators())
    plain = our_images(model, noise, 4, 4.0, PROMPTS)
    model.family.cfg_normalization = 0.8
    ours = our_images(model, noise, 4, 4.0, PROMPTS)
    assert (ours - plain).abs().max() > 0.05
    assert_same_pictures(ours, stock_images(stock, noise, 4.0, cfg_normalization=0.8), (3, 3, 64, 64))


@torch.no_grad()
def test_prompt_time_and_guidance_matter(load):
    model = load()
    x, cond = model.init_noise(generators(1)).repeat(3, 1, 1, 1), model.encode(PROMPTS)
    by_prompt = model.velocity(x, torch.full((3,), 0.5), cond)
    by_time = model.velocity(x, T, cond[torch.zeros(3, dtype=torch.long)])
    for v in (by_prompt, by_time):
        assert (v[0] - v[1]).abs().mean() > 0.02
        assert (v[1] - v[2]).abs().mean() > 0.02
    uncond = model.velocity(x, T, model.encode([""] * 3))
    guided = model.velocity(x, T, cond, 3.0)
    expected = uncond + 3 * (model.velocity(x, T, cond) - uncond)
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    assert (guided - uncond).abs().mean() > 0.05


@torch.no_grad()
def test_rows_of_different_lengths_do_not_depend_on_their_batch(load):
    model = load()
    x, cond = model.init_noise(generators()), model.encode(PROMPTS)
    lengths = cond.tensors["length"].tolist()
    assert len({*lengths}) == 3, lengths
    assert max(lengths) > 32 > min(lengths), "prompts on both sides of a group of tokens"
    first, *others = (model.encode([prompt]) for prompt in PROMPTS)
    for scale in (1.0, 2.0):
        together = model.velocity(x, T, cond, scale)
        alone = [model.velocity(x[i : i + 1], T[i : i + 1], model.encode([PROMPTS[i]]), scale) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together, model.velocity(x, T, first.cat(*others), scale), rtol=1e-4, atol=1e-4)


def test_encoding_leaves_the_prompts_as_they_were(load):
    prompts = list(PROMPTS)
    load().encode(prompts)
    assert prompts == PROMPTS


def test_grids(load, reload):
    model = load()
    assert torch.equal(model.sigmas(10), flow_sigmas(10, 3.0))
    assert model.sigmas(10)[-1] == 0
    torch.testing.assert_close(model.scheduler_sigmas(4), torch.tensor([1, 0.9, 0.75, 0.5, 0]))
    stock = reload()
    stock.scheduler = type(stock.scheduler)(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=40)
    noise = torch.zeros(1, 4, 12, 12)
    stock(prompt="x", latents=noise, num_inference_steps=4, guidance_scale=0, height=96, width=96, output_type="latent")
    family = ZImage(stock, 96)
    torch.testing.assert_close(family.scheduler_sigmas(4), stock.scheduler.sigmas)
    even = torch.tensor([1, 0.75, 0.5, 0.25, 0])
    torch.testing.assert_close(family.scheduler_sigmas(4), family.shift * even / (1 + (family.shift - 1) * even))


def move(model: Any) -> None:
    """Weights that some training might have left."""
    rng = torch.Generator().manual_seed(1)
    for parameter in model.weights.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)


def test_a_trained_lora_loads_in_the_stock_pipeline(fresh, reload, tmp_path):
    model, stock = fresh(), reload()
    noise = model.init_noise(generators())
    before = our_images(model, noise, 4, 4.0, PROMPTS)
    move(model)
    model.weights.export(tmp_path, "policy")
    stock.load_lora_weights(tmp_path)
    ours = our_images(model, noise, 4, 4.0, PROMPTS)
    assert (ours - before).abs().max() > 0.05
    torch.testing.assert_close(ours, stock_images(stock, noise, 4.0), rtol=0, atol=1e-5)


def test_a_fully_trained_network_loads_in_the_stock_pipeline(fresh, reload, tmp_path):
    model, stock = fresh(finetune="full", sets=()), reload()
    noise = model.init_noise(generators())
    move(model)
    model.weights.export(tmp_path, "policy")
    stock.transformer = ZImageTransformer2DModel.from_pretrained(tmp_path / "transformer")
    ours = our_images(model, noise, 4, 4.0, PROMPTS)
    torch.testing.assert_close(ours, stock_images(stock, noise, 4.0), rtol=0, atol=1e-4)


def test_adapters_sit_on_every_attention_of_the_published_network():
    with torch.device("meta"):
        network = ZImageTransformer2DModel(n_layers=2, axes_lens=[1536, 512, 512])
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    attention = {name for name in linear if ".attention." in name}
    assert attention == {name for name in linear if name.endswith(tuple(f".{n}" for n in ZImage.lora_targets))}
    assert {name.split(".")[0] for name in attention} == {"layers", "noise_refiner", "context_refiner"}
    assert len(attention) == 4 * 6


@torch.no_grad()
def test_images_to_latents_and_back_is_the_stock_autoencoder(load, stock, tmp_path):
    model = load()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    latents = model.encode_images(images)
    assert latents.shape == (3, *model.latent_shape) == (3, 4, 8, 8)
    there_and_back = stock.vae.decode(stock.vae.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
    torch.testing.assert_close(model.decode(latents), there_and_back.clamp(0, 1), rtol=0, atol=1e-5)
    other = load_model(save_tiny_z_image(tmp_path, seed=1), device="cpu", resolution=64)
    assert model.latent_space["scaling_factor"] == 1.5
    assert model.latent_space == load(finetune="full", dtype="bf16").latent_space != other.latent_space


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_bf16_is_close_and_trains_fp32_weights(load, finetune):
    exact, rounded = load(), load(finetune=finetune, dtype="bf16")
    x = exact.init_noise(generators())
    v = rounded.velocity(x, T, rounded.encode(PROMPTS), 2.0)
    grads = torch.autograd.grad(v.square().mean(), rounded.weights.parameters(), allow_unused=True)
    assert v.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in rounded.weights.parameters())
    assert any(grad is not None and grad.any() for grad in grads)
    with torch.no_grad():
        error = (v - exact.velocity(x, T, exact.encode(PROMPTS), 2.0)).abs().mean()
    assert 0 < error < 0.1 * v.abs().mean()


def test_gradient_checkpointing_gives_the_same_gradients(fresh):
    gradients = []
    for gradient_checkpointing in (False, True):
        model = fresh(gradient_checkpointing=gradient_checkpointing)
        move(model)
        v = model.velocity(model.init_noise(generators()), T, model.encode(PROMPTS))
        gradients.append(torch.autograd.grad(v.square().mean(), model.weights.parameters()))
    assert all(grad.any() for grad in gradients[0])
    torch.testing.assert_close(*gradients)


def test_sizes_that_do_not_fit_are_refused(fresh, stock):
    with pytest.raises(UserError, match="resolution=72 does not fit this model"):
        fresh(resolution=72)
    for resolution in (0, 272, None):
        with pytest.raises(UserError, match="multiples of 16 pixels up to 256"):
            ZImage(stock, resolution)
    for max_sequence_length in (0, 513):
        with pytest.raises(UserError, match="reads 1 to 512 text tokens"):
            ZImage(stock, 64, max_sequence_length)
