"""Flow coordinates: definitions, inverses, and the variance-preserving bridge."""

import math

import pytest
import torch

from dgpo.core.flow import (
    expand,
    flow_to_vp,
    interpolate,
    shift_t,
    velocity_from_eps,
    velocity_target,
    x0_from_velocity,
)


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 4, 4, generator=g).double(), torch.randn(3, 2, 4, 4, generator=g).double()


def test_the_path_runs_from_data_to_noise(pair):
    x0, noise = pair
    x_t = interpolate(x0, noise, torch.tensor([0.0, 1.0, 0.25]).double())
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[1], noise[1])
    torch.testing.assert_close(x_t[2], 0.75 * x0[2] + 0.25 * noise[2])


def test_data_come_back_from_the_velocity(pair):
    x0, noise = pair
    t = torch.tensor([0.1, 0.5, 0.9]).double()
    x_t, v = interpolate(x0, noise, t), velocity_target(x0, noise)
    torch.testing.assert_close(x0_from_velocity(x_t, v, t), x0)


def test_expand_broadcasts_over_the_latent(pair):
    assert expand(torch.zeros(3), pair[0]).shape == (3, 1, 1, 1)
    assert expand(torch.zeros(3), torch.zeros(3, 2)).shape == (3, 1)


def test_shift_keeps_the_ends_and_moves_the_middle_up():
    assert shift_t(0.0, 3.0) == 0.0
    assert shift_t(1.0, 3.0) == 1.0
    assert shift_t(0.5, 3.0) == 0.75
    assert shift_t(0.5, 1.0) == 0.5
    assert shift_t(shift_t(0.3, 3.0), 1 / 3.0) == pytest.approx(0.3)


def test_a_variance_preserving_state_is_a_flow_state(pair):
    x0, noise = pair
    angle = torch.tensor([0.1, 0.8, 1.5]).double()
    alpha, sigma = angle.cos(), angle.sin()
    x_vp = expand(alpha, x0) * x0 + expand(sigma, x0) * noise
    x_t, t = x_vp / expand(alpha + sigma, x0), sigma / (alpha + sigma)
    torch.testing.assert_close(x_t, interpolate(x0, noise, t))
    torch.testing.assert_close(flow_to_vp(x_t, alpha, sigma), x_vp)
    torch.testing.assert_close(velocity_from_eps(x_vp, noise, alpha, sigma), velocity_target(x0, noise))
    assert t[1] == pytest.approx(math.sin(0.8) / (math.cos(0.8) + math.sin(0.8)))
