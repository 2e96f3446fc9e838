from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from parity import PROMPTS, generators
from tiny_vp import SD, ZERO_SNR, assert_stock_pictures, both, ddim, stock_noise, stock_walk, tiny_sd
from torch import nn

from dgpo.core.solvers import solve
from dgpo.errors import UserError
from dgpo.models.stable_diffusion import StableDiffusion

V_PREDICTION = SD | {"prediction_type": "v_prediction"}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "resolution"), [(SD, 72), (V_PREDICTION, 96), (ZERO_SNR, None)])
def test_our_walk_on_the_ddim_grid_draws_the_stock_pictures(tmp_path, config, resolution):
    stock, model = both(tmp_path, tiny_sd(ddim(**config)), resolution=resolution)
    plain, guided = (assert_stock_pictures(stock, model, scale) for scale in (1.0, 4.5))
    assert (guided - plain).abs().max() > 0.01


@pytest.mark.slow
def test_ddim_that_stops_at_the_first_timestep(tmp_path):
    """As the schedulers of the published checkpoints do: the last latents are still scaled by alpha + sigma."""
    stock, model = both(tmp_path, tiny_sd(ddim(**SD | {"set_alpha_to_one": False})))
    assert model.scheduler_sigmas(4)[-1] == model.family.schedule.levels[0].float() > 0.02
    assert_stock_pictures(stock, model, 4.5)


@pytest.mark.parametrize("config", [SD, V_PREDICTION])
def test_eulers_scheduler_is_ddim_too(tmp_path, config):
    """With the published checkpoints' "leading" steps. With others it starts from noise of deviation sigma, not 1."""
    stock, model = both(tmp_path, tiny_sd(EulerDiscreteScheduler(timestep_spacing="leading", **config)))
    assert_stock_pictures(stock, model, 4.5)
    stock.scheduler = ddim(**config)
    assert_stock_pictures(stock, model, 4.5)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "guidance_scale"), [(SD, 1.0), (SD, 4.5), (V_PREDICTION, 4.5)])
def test_dpm_solver_pp_is_the_same_in_both_coordinates(tmp_path, config, guidance_scale):
    """On diffusers' own grid for that scheduler, with its first and its last step of first order."""
    settings = {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
    stock, model = both(tmp_path, tiny_sd(DPMSolverMultistepScheduler(**settings, **config)))
    expected = assert_stock_pictures(stock, model, guidance_scale, num_steps=6, solver="dpm_solver_pp_2m")
    euler = model.decode(stock_walk(model, stock_noise(model), 6, guidance_scale))
    assert (euler - expected).abs().max() > 0.01, "the order matters here"


@pytest.mark.slow
def test_our_own_grid_and_noise_are_a_stock_call_with_trailing_steps(tmp_path):
    """The whole chain as a rollout walks it, whatever scheduler is in the folder."""
    stock, model = both(tmp_path, tiny_sd(PNDMScheduler(**SD | {"skip_prk_steps": True})))
    stock.scheduler = ddim(**SD | {"timestep_spacing": "trailing"})
    cond, noise = model.encode(PROMPTS), stock_noise(model)
    start = model.init_noise(generators())
    with torch.no_grad():
        x0 = solve(lambda x, t: model.velocity(x, t, cond, 3.0), start, model.sigmas(5), "euler")
    expected = stock(prompt=PROMPTS, latents=noise, num_inference_steps=5, guidance_scale=3.0, output_type="pt").images
    torch.testing.assert_close(model.decode(x0), expected, rtol=0, atol=1e-4)


def test_the_safety_checker_is_let_go():
    pipeline = tiny_sd()
    pipeline.register_modules(safety_checker=nn.Identity())
    StableDiffusion(pipeline)
    assert pipeline.safety_checker is None


def test_the_length_that_clip_reads_may_be_asked_for():
    assert StableDiffusion(tiny_sd(), max_sequence_length=16)


def test_a_network_that_is_told_its_guidance_is_refused():
    with pytest.raises(UserError, match="latent consistency models"):
        StableDiffusion(tiny_sd(time_cond_proj_dim=8))
