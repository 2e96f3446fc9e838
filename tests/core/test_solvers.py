"""Solvers against closed-form flows, their orders, and diffusers' schedulers on the same grid."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo.core.flow import expand
from dgpo.core.seeds import generator, randn_rows
from dgpo.core.solvers import (
    SOLVERS,
    dpm_solver_pp_2m,
    euler,
    flow_sigmas,
    gaussian_log_prob,
    heun,
    sde_moments,
    sde_solve,
    sde_step,
    solve,
)
from dgpo.errors import UserError

MEAN, STD = 1.5, 0.4


def gaussian_velocity(x, t):
    """The exact velocity of data N(MEAN, STD^2): the mean moves by -MEAN, deviations scale as the marginal's."""
    t = expand(t, x)
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)


def wavy_velocity(x, t):
    """Nonlinear and time-dependent, cheap, without meaning."""
    t = expand(t, x)
    return torch.tanh(x * (1 + t)) - 0.7 * x * t**2 + 0.3


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(0, "x")).to(dtype)


def test_the_official_ten_step_grid():
    sigmas = flow_sigmas(10, shift=3.0)
    official = [0.999, 0.963, 0.922, 0.874, 0.817, 0.749, 0.666, 0.562, 0.428, 0.249]  # rounded down to 1/1000
    assert ((sigmas[:-1] * 1000).floor() / 1000).tolist() == pytest.approx(official)
    assert sigmas.dtype == torch.float32
    assert sigmas[-1] == 0


@pytest.mark.parametrize(("steps", "shift"), [(4, 3.0), (10, 3.0), (28, 1.0)])
def test_the_grid_is_diffusers_flow_grid(steps, shift):
    torch.testing.assert_close(flow_sigmas(steps, shift), dpm_scheduler(steps, shift).sigmas, rtol=0, atol=1e-6)


def test_a_grid_from_pure_noise_starts_at_one():
    assert flow_sigmas(5, t_max=1.0)[0] == 1
    with pytest.raises(UserError, match="num_steps=0"):
        flow_sigmas(0)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("t_max", [1.0, 0.999])
def test_point_data_is_reached_exactly_in_any_number_of_steps(name, steps, t_max):
    point = noise(1, 3)
    x0 = solve(lambda x, t: (x - point) / expand(t, x), noise(5, 3), flow_sigmas(steps, t_max=t_max), name)
    torch.testing.assert_close(x0, point.expand(5, 3), rtol=1e-9, atol=1e-9)


def gaussian_flow(x, sigma, sigma_next):
    """The exact solution of `gaussian_velocity` from one level to another."""
    std, std_next = (math.hypot((1 - s) * STD, s) for s in (sigma, sigma_next))
    return (1 - sigma_next) * MEAN + std_next / std * (x - (1 - sigma) * MEAN)


def error_on_gaussian_data(name, sigmas):
    x = noise(64, 1)
    exact = gaussian_flow(x, float(sigmas[0]), float(sigmas[-1]))
    return float((solve(gaussian_velocity, x, sigmas, name) - exact).abs().max())


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpm_solver_pp_2m", 2)])
def test_order_of_convergence(name, order):
    """Between finite log(alpha / sigma); next to 0 and 1 DPM-Solver's order is 2 up to a logarithm."""
    grids = [torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64) for steps in (80, 160, 320)]
    errors = [error_on_gaussian_data(name, sigmas) for sigmas in grids]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize(("name", "tolerance"), [("euler", 1e-2), ("heun", 2e-4), ("dpm_solver_pp_2m", 1e-3)])
def test_from_pure_noise_to_data(name, tolerance):
    error = error_on_gaussian_data(name, torch.linspace(1, 0, 201, dtype=torch.float64))
    assert tolerance / 20 < error < tolerance


def dpm_scheduler(steps, shift=3.0):
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        flow_shift=shift,
        prediction_type="flow_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    return scheduler


def run_scheduler(scheduler, x):
    """diffusers' loop, with the velocity evaluated at the exact sigma of each of its evaluations."""
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = (scheduler.timesteps[index] / 1000) if scheduler.order == 2 else scheduler.sigmas[index]
        x = scheduler.step(wavy_velocity(x, sigma.expand(len(x))), timestep, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("steps", [2, 5, 10, 20])
def test_dpm_solver_equals_diffusers(steps):
    scheduler, x = dpm_scheduler(steps), noise(4, 2, 3, 3, dtype=torch.float32)
    assert scheduler.config["lower_order_final"]
    assert not scheduler.config["euler_at_final"]
    expected = run_scheduler(scheduler, x)
    torch.testing.assert_close(dpm_solver_pp_2m(wavy_velocity, x, scheduler.sigmas), expected, rtol=2e-5, atol=2e-5)


def test_euler_equals_diffusers():
    scheduler, x = FlowMatchEulerDiscreteScheduler(shift=3.0), noise(4, 2, 3, 3, dtype=torch.float32)
    scheduler.set_timesteps(7)
    torch.testing.assert_close(
        euler(wavy_velocity, x, scheduler.sigmas), run_scheduler(scheduler, x), rtol=1e-5, atol=1e-5
    )


def test_heun_equals_diffusers():
    scheduler, x = FlowMatchHeunDiscreteScheduler(shift=3.0), noise(4, 2, 3, 3, dtype=torch.float32)
    scheduler.set_timesteps(7)
    sigmas = torch.cat([scheduler.sigmas[:-1:2], scheduler.sigmas[-1:]])
    torch.testing.assert_close(heun(wavy_velocity, x, sigmas), run_scheduler(scheduler, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_state_is_fp32_and_the_network_gets_one_t_per_row(name):
    seen = []

    def velocity(x, t):
        seen.append((x.dtype, t.dtype, t.shape, t.unique().numel()))
        return wavy_velocity(x, t).bfloat16()

    x0 = solve(velocity, noise(3, 2).bfloat16(), flow_sigmas(4), name)
    assert x0.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32, (3,), 1)}


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=15, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), rate=st.floats(-2, 2), steps=st.integers(1, 8), shift=st.floats(0.5, 5))
def test_linear_flows_are_solved_linearly(name, a, b, rate, steps, shift):
    def linear(x, t):
        return rate * (1 + expand(t, x)) * x

    sigmas = flow_sigmas(steps, shift)
    x, y = noise(2, 3).chunk(2)
    combined = solve(linear, a * x + b * y, sigmas, name)
    separate = a * solve(linear, x, sigmas, name) + b * solve(linear, y, sigmas, name)
    torch.testing.assert_close(combined, separate, rtol=1e-9, atol=1e-9)


def test_an_unknown_solver_names_the_nearest():
    with pytest.raises(UserError, match="dpm_solver_pp_2m"):
        solve(wavy_velocity, noise(1, 1), flow_sigmas(2), "dpm_solver")


def test_sde_step_by_hand():
    x, v, z = torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[0.5]])
    t, t_next, level = 0.8, 0.6, 0.7
    s = level * math.sqrt(t / (1 - t))
    mean = 2 * (1 + s**2 / (2 * t) * -0.2) - (1 + s**2 * (1 - t) / (2 * t)) * -0.2
    std = s * math.sqrt(0.2)
    x_next, log_prob = sde_step(x, v, torch.tensor([t]), torch.tensor([t_next]), z, level)
    assert x_next.item() == pytest.approx(mean + std * 0.5, rel=1e-5)
    assert log_prob.item() == pytest.approx(-0.125 - math.log(std) - 0.5 * math.log(2 * math.pi), rel=1e-5)


def test_noise_of_a_constant_rate_by_hand():
    """s = .7 at any t; it is never infinite, so t = 1 needs no exception."""
    x, v = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    for t, t_next in ((0.8, 0.6), (1.0, 0.8)):
        at, to = (torch.tensor([value], dtype=torch.float64) for value in (t, t_next))
        mean, std = sde_moments(x, v, at, to, noise="constant")
        assert std.item() == pytest.approx(0.7 * math.sqrt(0.2))
        assert mean.item() == pytest.approx(2 * (1 - 0.49 * 0.2 / (2 * t)) + 0.2 * (1 + 0.49 * (1 - t) / (2 * t)))


def test_a_coefficients_preserving_step_by_hand():
    """x0 = 2 + .8 = 2.8 and eps = 2 - .2 = 1.8; a third of a right angle is 30 degrees, of sine .5."""
    x, v, z = torch.tensor([[2.0]]), torch.tensor([[-1.0]]), torch.tensor([[0.5]])
    x_next, log_prob = sde_step(x, v, torch.tensor([0.8]), torch.tensor([0.6]), z, 1 / 3, "cps")
    assert x_next.item() == pytest.approx(0.4 * 2.8 + 0.6 * math.sqrt(0.75) * 1.8 + 0.6 * 0.5 * 0.5, rel=1e-5)
    assert log_prob.item() == pytest.approx(-(0.15**2), rel=1e-4), "without the variance, as its authors have it"


def test_a_coefficients_preserving_step_with_all_noise_drawn_anew_is_diffusers_stochastic_step():
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[0.8, 0.6])
    x, v = noise(3, 2, 4, 4).float(), 2 * noise(3, 2, 4, 4).float().flip(0)
    expected = scheduler.step(v, scheduler.timesteps[0], x, generator=generator(1, "z")).prev_sample
    t, t_next = (sigma.expand(3) for sigma in scheduler.sigmas[:2])
    drawn = torch.randn(x.shape, generator=generator(1, "z"))
    torch.testing.assert_close(sde_step(x, v, t, t_next, drawn, 1.0, "cps")[0], expected)


@pytest.mark.parametrize("level", [0.3, 0.8, 1.0])
def test_coefficients_preserving_steps_leave_no_noise_in_an_image(level):
    """All data is one image, so at each level of the path the noise has that level's deviation; the SDE's has more."""
    image, sigmas = 1.5, flow_sigmas(6, shift=2.0)
    velocity = lambda x, t: (x - image) / expand(t, x)
    streams = [generator(0, "sde", i) for i in range(20)]
    x = randn_rows(streams, (500,)).double() * sigmas[0] + (1 - sigmas[0]) * image
    _, path, _ = sde_solve(velocity, x, sigmas, streams, level, range(5), "cps")
    for step, sigma in enumerate(sigmas.tolist()):
        assert (path[:, step] - (1 - sigma) * image).std().item() == pytest.approx(sigma, rel=0.03, abs=1e-6)
    _, path, _ = sde_solve(velocity, x, sigmas, streams, level, range(5), "sde")
    assert (path[:, 5] - (1 - sigmas[5]) * image).std() > 1.04 * sigmas[5]


def test_an_unknown_kind_of_noise_is_refused():
    with pytest.raises(ValueError, match="noise=False is no stochastic step; use one of sde, constant, cps"):
        sde_moments(noise(1, 1), noise(1, 1), torch.tensor([0.8]), torch.tensor([0.6]), 0.7, False)


@pytest.mark.parametrize("kind", ["sde", "constant", "cps"])
def test_without_noise_the_step_is_eulers(kind):
    x, v = noise(3, 4), noise(3, 4) * 2
    mean, std = sde_moments(x, v, torch.full((3,), 0.8), torch.full((3,), 0.6), noise_level=0.0, noise=kind)
    torch.testing.assert_close(mean, x - 0.2 * v)
    assert (std == 0).all()


def test_next_to_pure_noise_the_step_uses_the_next_level():
    x, t_next = noise(1, 4), torch.tensor([0.9], dtype=torch.float64)
    _, std = sde_moments(x, x, torch.tensor([1.0], dtype=torch.float64), t_next)
    assert std.item() == pytest.approx(0.7 * math.sqrt(1 / 0.1) * math.sqrt(0.1))
    _, near = sde_moments(x, x, torch.tensor([0.9997], dtype=torch.float64), t_next)
    assert near.item() == pytest.approx(std.item(), rel=2e-3)


def test_log_prob_is_the_mean_of_torch_normal():
    x, mean, std = noise(3, 2, 4), noise(3, 2, 4) + 1, torch.tensor([0.5, 1.0, 2.0]).double().reshape(3, 1, 1)
    expected = torch.distributions.Normal(mean, std).log_prob(x).mean((1, 2))
    torch.testing.assert_close(gaussian_log_prob(x, mean, std), expected)


def test_sde_solve_keeps_its_path_and_densities():
    x, sigmas = noise(3, 2), flow_sigmas(5)
    x0, latents, log_probs = sde_solve(wavy_velocity, x, sigmas, [generator(0, "sde", i) for i in range(3)])
    assert latents.shape == (3, 6, 2)
    assert log_probs.shape == (3, 5)
    assert torch.equal(latents[:, 0], x)
    assert torch.equal(latents[:, -1], x0)
    t, t_next = (sigmas[k].expand(3).double() for k in (2, 3))
    mean, std = sde_moments(latents[:, 2], wavy_velocity(latents[:, 2], t), t, t_next)
    torch.testing.assert_close(gaussian_log_prob(latents[:, 3], mean, std), log_probs[:, 2])

    alone = sde_solve(wavy_velocity, x[1:2], sigmas, [generator(0, "sde", 1)])[0]
    torch.testing.assert_close(alone, x0[1:2])


def test_outside_its_window_the_sampler_is_euler():
    x, sigmas, streams = noise(3, 2), flow_sigmas(5), [generator(0, "sde", i) for i in range(3)]
    x0, _, log_probs = sde_solve(wavy_velocity, x, sigmas, streams, window=range(1, 3))
    assert (log_probs != 0).any(0).tolist() == [False, True, True, False, False]
    assert not torch.allclose(x0, euler(wavy_velocity, x, sigmas))
    torch.testing.assert_close(
        sde_solve(wavy_velocity, x, sigmas, streams, window=range(0))[0], euler(wavy_velocity, x, sigmas)
    )


@pytest.mark.parametrize("kind", ["sde", "constant"])
def test_the_stochastic_sampler_has_the_same_marginal(kind):
    streams = [generator(0, "sde", i) for i in range(40)]
    x = randn_rows(streams, (100,)).double()
    x0, _, _ = sde_solve(gaussian_velocity, x, flow_sigmas(150, shift=2.0, t_max=1.0), streams, noise=kind)
    assert x0.mean() == pytest.approx(MEAN, abs=0.03)
    assert x0.std() == pytest.approx(STD, rel=0.05)
    assert abs(torch.corrcoef(torch.stack([x.flatten(), x0.flatten()]))[0, 1]) < 0.9  # the ODE's is 1
