from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny_sana import save_tiny_sana
from torch import Tensor, nn

from dgpo.core.solvers import flow_sigmas, solve
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.sana import Sana

T = torch.tensor([0.9, 0.5, 0.2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sana(tmp_path_factory.mktemp("models") / "sana")


def with_euler(pipeline: Any) -> Any:
    """The same pipeline with Euler's method, the same shift, and a t that is not rounded to an integer timestep."""
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return pipeline


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Callable[..., Any]:
    def fresh(folder: Path = folder, **settings: Any) -> Any:
        model: Any = load_model(folder, device="cpu", **settings)
        with_euler(model.pipeline)
        return model

    return fresh


@pytest.fixture(scope="module")
def load(fresh: Callable[..., Any]) -> Callable[..., Any]:
    """The same, once per settings: for tests that leave the model as it was."""
    return functools.cache(fresh)


@pytest.fixture(scope="module")
def reload(folder: Path) -> Callable[..., Any]:
    """The pipeline as diffusers alone loads it."""

    def reload(folder: Path = folder) -> Any:
        pipeline = SanaPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return reload


@pytest.fixture(scope="module")
def stock(reload: Callable[..., Any]) -> Any:
    return with_euler(reload())


def stock_images(stock: Any, noise: Tensor, guidance_scale: float, num_steps: int = 4) -> Tensor:
    return stock(
        prompt=PROMPTS,
        latents=noise,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        height=noise.shape[-2] * 32,
        width=noise.shape[-1] * 32,
        use_resolution_binning=False,
        output_type="pt",
    ).images


@pytest.mark.parametrize("resolution", [None, 96])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_our_walk_on_the_scheduler_grid_draws_the_stock_pictures(load, stock, resolution, guidance_scale):
    model = load(resolution=resolution)
    noise = model.init_noise(generators())
    ours = our_images(model, noise, 4, guidance_scale, PROMPTS)
    side = resolution or 128
    assert_same_pictures(ours, stock_images(stock, noise, guidance_scale), (3, 3, side, side))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"interpolation_scale": 2, "qk_norm": "rms_norm_across_heads"},  # positions as at 4K; norms as in Sana 1.5
        {"timestep_scale": 0.3, "out_channels": 8},  # as the classes allow: another time, and a learned variance
    ],
    ids=["positions and norms", "timestep scale and variance"],
)
def test_other_networks_of_the_family_draw_the_stock_pictures(fresh, reload, tmp_path, settings):
    save_tiny_sana(tmp_path, **settings)
    model, stock = fresh(tmp_path, resolution=96), with_euler(reload(tmp_path))
    noise = model.init_noise(generators())
    ours = our_images(model, noise, 4, 4.5, PROMPTS)
    assert_same_pictures(ours, stock_images(stock, noise, 4.5), (3, 3, 96, 96))


@torch.no_grad()
def test_our_dpm_solver_draws_the_pictures_of_the_published_scheduler(folder, reload):
    """It tells the network integer timesteps; told the same, our solver takes the same steps on the same grid."""
    model: Any = load_model(folder, device="cpu")
    stock = reload()
    noise, cond = model.init_noise(generators()), model.encode(PROMPTS)
    expected = stock_images(stock, noise, 4.5, num_steps=8)
    sigmas = model.scheduler_sigmas(8)
    torch.testing.assert_close(sigmas, model.sigmas(8))
    told = dict(zip(sigmas.tolist(), (stock.scheduler.timesteps / 1000).tolist()))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model.velocity(x, torch.full_like(t, told[t[0].item()]), cond, 4.5)

    assert_same_pictures(model.decode(solve(velocity, noise, sigmas, "dpm_solver_pp_2m")), expected, (3, 3, 128, 128))
    unrounded = solve(lambda x, t: model.velocity(x, t, cond, 4.5), noise, sigmas, "dpm_solver_pp_2m")
    assert 0 < (model.decode(unrounded) - expected).abs().mean() < 0.02


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
    prompts = [*PROMPTS[:2], ""]
    x, cond = model.init_noise(generators()), model.encode(prompts)
    assert cond.tensors["mask"].sum(1).tolist() == [15, 12, 1], "the beginning and a last word of the instruction"
    first, *others = (model.encode([prompt]) for prompt in prompts)
    for scale in (1.0, 2.0):
        together = model.velocity(x, T, cond, scale)
        alone = [model.velocity(x[i : i + 1], T[i : i + 1], model.encode([prompts[i]]), scale) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together, model.velocity(x, T, first.cat(*others), scale), rtol=1e-4, atol=1e-4)


def test_prompts_follow_the_instruction_and_the_empty_one_does_not(load, stock):
    model = load(max_sequence_length=12)
    expected = stock.encode_prompt(
        PROMPTS, max_sequence_length=12, complex_human_instruction=model.family.instruction, negative_prompt=""
    )
    cond, empty = model.encode(PROMPTS), model.encode([""])
    assert len(model.family.instruction) == 8
    assert torch.equal(cond.tensors["prompt_embeds"], expected[0])
    assert torch.equal(cond.tensors["mask"], expected[1])
    assert torch.equal(empty.tensors["prompt_embeds"], expected[2][:1, :1])


def test_grids(load, folder):
    model: Any = load_model(folder, device="cpu")
    assert torch.equal(model.sigmas(10), flow_sigmas(10, 3.0))
    assert model.sigmas(10)[-1] == 0
    torch.testing.assert_close(model.scheduler_sigmas(7), model.sigmas(7))
    assert load().shift == model.shift == 3.0
    assert load().scheduler_sigmas(4)[0] == 1


def move(model: Any) -> None:
    """Weights that some training might have left."""
    rng = torch.Generator().manual_seed(1)
    for parameter in model.weights.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng)


def test_a_trained_lora_loads_in_the_stock_pipeline(fresh, reload, tmp_path):
    model, stock = fresh(resolution=96), with_euler(reload())
    noise = model.init_noise(generators())
    before = our_images(model, noise, 4, 4.5, PROMPTS)
    move(model)
    model.weights.export(tmp_path, "policy")
    stock.load_lora_weights(tmp_path)
    ours = our_images(model, noise, 4, 4.5, PROMPTS)
    assert (ours - before).abs().max() > 0.05
    torch.testing.assert_close(ours, stock_images(stock, noise, 4.5), rtol=0, atol=1e-5)


def test_a_fully_trained_network_loads_in_the_stock_pipeline(fresh, reload, tmp_path):
    model, stock = fresh(finetune="full", sets=(), resolution=96), with_euler(reload())
    noise = model.init_noise(generators())
    move(model)
    model.weights.export(tmp_path, "policy")
    stock.transformer = SanaTransformer2DModel.from_pretrained(tmp_path / "transformer")
    ours = our_images(model, noise, 4, 4.5, PROMPTS)
    torch.testing.assert_close(ours, stock_images(stock, noise, 4.5), rtol=0, atol=1e-5)


def test_adapters_sit_on_every_attention_of_the_published_network():
    with torch.device("meta"):
        network = SanaTransformer2DModel(num_layers=2)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    attention = {name for name in linear if ".attn1." in name or ".attn2." in name}
    assert attention == {name for name in linear if name.endswith(tuple(f".{n}" for n in Sana.lora_targets))}
    assert len(attention) == 4 * 2 * 2


@torch.no_grad()
def test_images_to_latents_and_back_is_the_stock_autoencoder(load, stock, tmp_path):
    model, vae = load(), stock.vae
    images = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    latents = model.encode_images(images)
    assert latents.shape == (3, *model.latent_shape) == (3, 4, 4, 4)
    torch.testing.assert_close(latents, vae.encode(images * 2 - 1).latent * 0.41407)
    there_and_back = vae.decode(vae.encode(images * 2 - 1).latent).sample / 2 + 0.5
    torch.testing.assert_close(model.decode(latents), there_and_back.clamp(0, 1), rtol=0, atol=1e-5)
    other = load_model(save_tiny_sana(tmp_path, seed=1), device="cpu")
    assert model.latent_space["scaling_factor"] == 0.41407
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
    with pytest.raises(UserError, match="resolution=80 does not fit this model: it draws multiples of 32 pixels"):
        fresh(resolution=80)
    for max_sequence_length in (0, 10**6):
        with pytest.raises(UserError, match="reads 1 to 8192 text tokens"):
            Sana(stock, None, max_sequence_length)
