"""The noise schedule by itself, then what only the variance-preserving families must do."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from parity import PROMPTS, generators
from tiny_vp import LINEAR, SD, ZERO_SNR, both, ddim, stock_noise, tiny_pixart, tiny_sd, tiny_sdxl

from dgpo.core.flow import interpolate, shift_t
from dgpo.errors import UserError
from dgpo.models.vp import VPSchedule, vp_scale

COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SCHEDULES = [SD, LINEAR, COSINE, ZERO_SNR]
T = torch.tensor([0.9, 0.5, 0.2])


@pytest.mark.parametrize("config", SCHEDULES)
def test_levels_are_the_schedulers_own_at_every_trained_timestep(config):
    scheduler = ddim(**config)
    schedule = VPSchedule(scheduler)
    level = schedule.at(schedule.levels.float())
    assert torch.equal(level.timestep, torch.arange(1000.0))
    torch.testing.assert_close(level.alpha, scheduler.alphas_cumprod.sqrt(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(level.sigma, (1 - scheduler.alphas_cumprod).sqrt(), rtol=1e-4, atol=0)
    assert level.alpha.min() > 0, "what a noise prediction is divided by"


@pytest.mark.parametrize("config", [SD, LINEAR, COSINE])
def test_between_timesteps_the_log_ratio_is_interpolated(config):
    schedule = VPSchedule(ddim(**config))
    ratio = torch.logit(schedule.levels)
    between = torch.sigmoid(ratio[:-1] + 0.25 * ratio.diff()).float()
    level = schedule.at(between)
    torch.testing.assert_close(level.timestep, torch.arange(999) + 0.25, rtol=0, atol=5e-3)
    torch.testing.assert_close(level.sigma / (level.alpha + level.sigma), between, rtol=1e-5, atol=0)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(999))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [1.0, 0.9, 0.5123, 0.1, 0.03])
def test_a_perfect_prediction_is_the_perfect_velocity(prediction, t):
    config = {"epsilon": LINEAR, "v_prediction": ZERO_SNR}[prediction]
    schedule = VPSchedule(ddim(**config))
    t = torch.full((3,), min(t, float(schedule.levels[-1])))
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x_vp, (_, alpha, sigma) = schedule.read(interpolate(x0, noise, t), t)
    alpha_row, sigma_row = alpha[:, None, None, None], sigma[:, None, None, None]
    torch.testing.assert_close(x_vp, alpha_row * x0 + sigma_row * noise, rtol=1e-4, atol=1e-5)
    output = noise if prediction == "epsilon" else alpha_row * noise - sigma_row * x0
    velocity = schedule.velocity(output, x_vp, schedule.at(t))
    torch.testing.assert_close(velocity, noise - x0, rtol=1e-4, atol=1e-4)


def test_t_outside_the_schedule_is_read_as_the_nearest_level_with_the_deviation_it_knows():
    schedule = VPSchedule(ddim(**SD))
    low, high = float(schedule.levels[0]), float(schedule.levels[-1])
    assert (low, high) == (pytest.approx(0.0284, abs=1e-3), pytest.approx(0.9360, abs=1e-3))
    t = torch.tensor([0.0, low, high, 0.97, 1.0])
    level = schedule.at(t)
    assert level.timestep.tolist() == [0, 0, 999, 999, 999]
    assert len(level.alpha.unique()) == len(level.sigma.unique()) == 2
    noise = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x_vp, _ = schedule.read(noise, t)
    torch.testing.assert_close(x_vp[-1], noise[-1], rtol=0, atol=0)
    assert schedule.velocity(noise, x_vp, level).isfinite().all()


def test_our_grid_follows_the_configuration_and_starts_at_the_last_timestep():
    def timesteps(spacing, num_steps):
        schedule = VPSchedule(ddim(**SD | {"timestep_spacing": spacing}))
        grid = schedule.grid(num_steps, 1.0)
        assert grid[-1] == 0
        assert (grid.diff() < 0).all()
        assert grid.dtype == torch.float32
        return schedule.at(grid[:-1]).timestep.tolist()

    assert timesteps("trailing", 4) == timesteps("leading", 4) == [999, 749, 499, 249]
    assert timesteps("trailing", 7) == [999, 856, 713, 570, 428, 285, 142]
    assert timesteps("linspace", 4) == [999, 666, 333, 0]
    assert timesteps("linspace", 1) == timesteps("leading", 1) == [999]
    assert timesteps("leading", 1000) == list(range(999, -1, -1))


def test_a_shift_moves_the_grid_towards_noise_and_keeps_its_ends():
    schedule, zero_snr = VPSchedule(ddim(**SD)), VPSchedule(ddim(**ZERO_SNR))
    plain, shifted = schedule.grid(8, 1.0), schedule.grid(8, 3.0)
    assert torch.equal(shifted[[0, -1]], plain[[0, -1]])
    assert (shifted[1:-1] > plain[1:-1]).all()
    assert (shifted.diff() < 0).all()
    torch.testing.assert_close(zero_snr.grid(8, 3.0), shift_t(zero_snr.grid(8, 1.0), 3.0))


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_a_number_of_steps_that_cannot_be(num_steps):
    with pytest.raises(UserError, match=f"num_steps={num_steps}: this model has 1 to 1000"):
        VPSchedule(ddim(**SD)).grid(num_steps, 1.0)


def test_our_grid_does_not_depend_on_which_scheduler_the_folder_has():
    betas = {key: SD[key] for key in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    settings = betas | {"timestep_spacing": "leading"}
    schedules = [
        VPSchedule(kind(**settings))
        for kind in (DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler)
    ]
    for schedule in schedules[1:]:
        assert torch.equal(schedule.grid(10, 1.0), schedules[0].grid(10, 1.0))
        assert schedule.noise_scale == schedules[0].noise_scale


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (ddim(**SD), [751, 501, 251, 1]),
        (PNDMScheduler(**SD | {"skip_prk_steps": True}), [751, 501, 251, 1]),
        (EulerDiscreteScheduler(timestep_spacing="leading", **SD), [751, 501, 251, 1]),
        (EulerDiscreteScheduler(use_karras_sigmas=True, **SD), None),
        (DPMSolverMultistepScheduler(**LINEAR), [999, 749, 500, 250]),
    ],
)
def test_the_grid_of_any_scheduler(scheduler, expected):
    schedule = VPSchedule(scheduler)
    grid = schedule.scheduler_grid(4)
    assert grid.shape == (5,)
    assert (grid.diff() < 0).all()
    assert grid[-1] == (0 if not isinstance(scheduler, PNDMScheduler) else schedule.levels[0].float())
    if expected is not None:
        assert schedule.at(grid[:-1]).timestep.tolist() == expected
    scheduler.set_timesteps(7)
    schedule.scheduler_grid(3)
    assert len(scheduler.timesteps) >= 7, "the pipeline's own scheduler is left alone"


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(), "EDMEulerScheduler with .* describes no variance-preserving network"),
        (FlowMatchEulerDiscreteScheduler(), "DDIMScheduler"),
        (ddim(prediction_type="sample"), "prediction_type='sample'"),
        (ddim(**ZERO_SNR | {"prediction_type": "epsilon"}), "predicts v_prediction"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused(scheduler, message):
    with pytest.raises(UserError, match=message):
        VPSchedule(scheduler)


@pytest.fixture(scope="module", params=[tiny_sd, tiny_sdxl, tiny_pixart])
def model(request, tmp_path_factory):
    """Read-only."""
    return both(tmp_path_factory.mktemp("vp"), request.param())[1]


def test_noise_starts_as_the_stock_call_does_at_the_first_level(model):
    assert model.shift == 1.0
    expected = stock_noise(model) / vp_scale(model.sigmas(10)[0])
    torch.testing.assert_close(model.init_noise(generators()), expected)


def velocity(model, guidance_scale=2.0, t=T):
    return model.velocity(stock_noise(model), t, model.encode(PROMPTS), guidance_scale)


def test_conditioning_and_t_matter_and_guidance_is_a_line(model):
    with torch.no_grad():
        v_cond = velocity(model, 1.0)
        v_uncond = model.velocity(stock_noise(model), T, model.encode([""] * len(T)), 1.0)
        assert (v_cond - v_uncond).abs().max() > 0.02
        torch.testing.assert_close(velocity(model, 3.0), v_uncond + 3 * (v_cond - v_uncond), rtol=1e-3, atol=1e-3)
        assert (velocity(model, 1.0, T + 0.01) - v_cond).abs().max() > 0.02


@pytest.mark.parametrize("scale", [0.0, 0.99, -1.0, float("nan")])
def test_guidance_below_one_is_refused_with_what_it_would_do(model, scale):
    with pytest.raises(UserError, match=f"guidance_scale={scale} cannot work.* do not follow their prompt.*take 1"):
        velocity(model, scale)
