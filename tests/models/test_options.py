"""What a pipeline's configuration can say, beside what the published ones say: the stock pictures, whatever it is.

Grids are the sampler's own and are walked as the scheduler has them; shifts, timesteps and the autoencoder's scales are
the network's, and training uses them as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from parity import PROMPTS, assert_same_pictures, generators, our_images
from tiny import tiny_sd3
from tiny_flux import tiny_flux
from tiny_qwen_image import tiny_qwen_image
from tiny_sana import tiny_sana
from tiny_vp import SD, assert_stock_pictures, both, ddim, tiny_pixart, tiny_sd, tiny_sdxl
from tiny_z_image import tiny_z_image

from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.grids import scheduler_shift

FLOWS: dict[Callable[[], Any], dict[str, Any]] = {  # how the stock call is asked for what ours draws
    tiny_sd3: {"max_sequence_length": 0},
    tiny_flux: {"max_sequence_length": 16, "height": 64, "width": 64},
    tiny_qwen_image: {"height": 64, "width": 64},
    tiny_z_image: {"height": 64, "width": 64, "guidance_scale": 0.0},
    tiny_sana: {"height": 128, "width": 128, "use_resolution_binning": False},
}
OWN = {tiny_flux: {"max_sequence_length": 16, "resolution": 64}, tiny_sana: {"resolution": 128}}
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 64, "max_shift": 1.3}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "another shift": {"shift": 1.7},
    "a shift by size": DYNAMIC,
    "a linear shift by size": DYNAMIC | {"time_shift_type": "linear"},
    "a terminal": {"shift": 2.0, "shift_terminal": 0.05},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}


def flow_model(folder: Path, make: Callable[[], Any], scheduler: Any) -> tuple[Any, Any]:
    """The stock pipeline with this scheduler, and ours."""
    stock = make()
    stock.scheduler = scheduler
    stock.save_pretrained(folder)
    own = OWN.get(make, {} if make is tiny_sd3 else {"resolution": 64})
    return stock, load_model(folder, device="cpu", sets=(), **own)


@pytest.mark.slow
@pytest.mark.parametrize("options", SCHEDULERS)
@pytest.mark.parametrize("make", FLOWS)
def test_a_flow_schedulers_options(tmp_path: Path, make: Callable[[], Any], options: str) -> None:
    settings = SCHEDULERS[options]
    if make is tiny_sana and settings.get("use_dynamic_shifting"):
        with pytest.raises(UserError, match="tells it no size to follow"):
            flow_model(tmp_path, make, FlowMatchEulerDiscreteScheduler(**settings))
        return
    stock, model = flow_model(tmp_path, make, FlowMatchEulerDiscreteScheduler(**settings))
    noise = model.init_noise(generators(2))
    drawn = our_images(model, noise, 4, 1.0, PROMPTS[:2])
    packs = make in (tiny_flux, tiny_qwen_image)
    latents = stock._pack_latents(noise, 2, *noise.shape[1:]) if packs else noise
    call = {"guidance_scale": 1.0} if make in (tiny_sd3, tiny_sana) else {}
    expected = stock(
        prompt=PROMPTS[:2], latents=latents, num_inference_steps=4, output_type="pt", **call | FLOWS[make]
    ).images
    assert_same_pictures(drawn, expected, (2, 3, drawn.shape[-1], drawn.shape[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux, tiny_qwen_image, tiny_z_image])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_training_walks_the_shift_of_its_size(tmp_path: Path, make: Callable[[], Any], kind: Any) -> None:
    """Our own grid: SD3 took the fixed `shift` beside use_dynamic_shifting."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, time_shift_type=kind, **DYNAMIC)
    _, model = flow_model(tmp_path, make, scheduler)
    tokens = model.latent_shape[1] * model.latent_shape[2] / 4
    mu = 0.5 + 0.8 * (tokens - 4) / 60
    assert model.shift == pytest.approx(math.exp(mu) if kind == "exponential" else mu)
    assert model.sigmas(1)[0] == pytest.approx(model.shift * 0.999 / (1 + (model.shift - 1) * 0.999))


def test_every_flow_grid_ends_at_the_terminal(tmp_path: Path) -> None:
    _, model = flow_model(tmp_path, tiny_sd3, FlowMatchEulerDiscreteScheduler(shift=2.0, shift_terminal=0.05))
    assert model.sigmas(6)[-2:].tolist() == pytest.approx([0.05, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("make", FLOWS)
def test_timesteps_are_numbered_as_the_scheduler_says(tmp_path: Path, make: Callable[[], Any]) -> None:
    """What the network is told at t, of a scheduler with 500 training timesteps, is what it was told at t / 2."""
    _, model = flow_model(tmp_path, make, FlowMatchEulerDiscreteScheduler(num_train_timesteps=500, shift=3.0))
    x, cond = model.init_noise(generators(2)), model.encode(PROMPTS[:2])
    with torch.no_grad():
        v = model.velocity(x, torch.full((2,), 0.8), cond)
        model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        assert torch.allclose(model.velocity(x, torch.full((2,), 0.4), cond), v, atol=1e-5)


@pytest.mark.slow
def test_flow_schedulers_of_other_solvers_and_schedulers_of_no_flow(tmp_path: Path) -> None:
    solver = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.5, prediction_type="flow_prediction")
    _, model = flow_model(tmp_path / "solver", tiny_sd3, solver)
    assert model.shift == 2.5
    for number, scheduler in enumerate(
        (DDIMScheduler(), DPMSolverMultistepScheduler(flow_shift=2.5), EulerDiscreteScheduler())
    ):
        with pytest.raises(UserError, match=f"a {type(scheduler).__name__}, is for no flow"):
            flow_model(tmp_path / str(number), tiny_sd3, scheduler)
    with pytest.raises(UserError, match="invert_sigmas=true"):
        scheduler_shift({"shift": 3.0, "invert_sigmas": True}, (4, 8, 8))


def _rescaled(make: Callable[..., Any], **vae: Any) -> Any:
    pipeline = make()
    pipeline.vae.register_to_config(**vae)
    return pipeline


CHANNELS = {"latents_mean": [-0.4, 0.3, 0.1, -0.2], "latents_std": [1.3, 0.7, 2.0, 1.1]}
VAES: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (tiny_sd, {"shift_factor": 0.3}),  # which its stock pipeline does not read
    (tiny_pixart, {"shift_factor": 0.3}),
    (tiny_sdxl, {"shift_factor": 0.3}),
    (tiny_sdxl, CHANNELS),
    (tiny_sdxl, {"latents_mean": CHANNELS["latents_mean"], "latents_std": None}),  # one alone is not read
    (tiny_sd, CHANNELS),
    (tiny_pixart, CHANNELS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "vae"), VAES)
def test_what_a_variance_preserving_pipeline_reads_of_its_autoencoder(
    tmp_path: Path, make: Callable[..., Any], vae: dict[str, Any]
) -> None:
    stock, model = both(tmp_path, _rescaled(make, **vae))
    call = {"clean_caption": False, "use_resolution_binning": False} if make is tiny_pixart else {}
    assert_stock_pictures(stock, model, 1.0, **call)
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.family.from_vae(model.family.to_vae(latents)), latents)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux, tiny_z_image, tiny_sana])
def test_what_a_flow_pipeline_reads_of_its_autoencoder(tmp_path: Path, make: Callable[[], Any]) -> None:
    scale = {"scaling_factor": 0.9, **CHANNELS, **({} if make is tiny_sana else {"shift_factor": -0.2})}
    stock, model = flow_model(tmp_path, lambda: _rescaled(make, **scale), make().scheduler)
    x0 = model.init_noise(generators(2))
    shift = 0.0 if make is tiny_sana else -0.2
    with torch.no_grad():
        expected = stock.vae.decode(x0 / 0.9 + shift, return_dict=False)[0]
    torch.testing.assert_close(model.decode(x0), (expected / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(model.family.from_vae(model.family.to_vae(x0)), x0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.0001 * (1 + i / 100) for i in range(1000)]},
        {"num_train_timesteps": 500},
        {"prediction_type": "v_prediction"},
        {"steps_offset": 0},
        {"timestep_spacing": "trailing"},
    ],
)
def test_a_variance_preserving_schedulers_options(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_stock_pictures(*both(tmp_path, tiny_sd(ddim(**SD | options))), 4.5)


@pytest.mark.parametrize("kind", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_a_variance_preserving_solvers_own_grid(tmp_path: Path, kind: str) -> None:
    """Its levels lie between the trained timesteps, which our schedule interpolates as the stock scheduler does."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="leading", **{kind: True}, **SD)
    stock, model = both(tmp_path, tiny_sd(scheduler))
    assert_stock_pictures(stock, model, 1.0, num_steps=5)
