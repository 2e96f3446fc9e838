from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny_sana import save_tiny_sana
from torch import Tensor

from dgpo.core.solvers import flow_sigmas, solve
from dgpo.models import load_model

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


def test_the_mask_keeps_the_beginning_and_a_last_word_of_the_instruction(load):
    assert load().encode([*PROMPTS[:2], ""]).tensors["mask"].sum(1).tolist() == [15, 12, 1]


def test_latents_are_the_autoencoders_times_their_scale(load, stock):
    images = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = stock.vae.encode(images * 2 - 1).latent * 0.41407
    torch.testing.assert_close(load().encode_images(images), expected)
