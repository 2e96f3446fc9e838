"""Draws stay in their range, follow their law, and come from the generator alone."""

import pytest
import torch

from dgpo.core.seeds import generator
from dgpo.core.solvers import flow_sigmas
from dgpo.core.timesteps import DRAWS, grid_draws, linear_draws, logit_normal_draws, stratified_draws
from dgpo.errors import UserError


def test_grid_draws_are_distinct_early_noise_levels():
    sigmas = flow_sigmas(10)
    drawn = [grid_draws(sigmas, 6, 4, generator(0, "t", i)) for i in range(50)]
    for t in drawn:
        assert len(set(t.tolist())) == 4
        assert set(t.tolist()) <= set(sigmas[:7].tolist())
    assert {value for t in drawn for value in t.tolist()} == set(sigmas[:7].tolist())


def test_grid_draws_that_cannot_be_made_say_what_would():
    with pytest.raises(UserError, match="at most 3"):
        grid_draws(flow_sigmas(4), 6, 2, generator(0, "t"))
    with pytest.raises(UserError, match="num_points=4"):
        grid_draws(flow_sigmas(10), 2, 4, generator(0, "t"))
    assert len(grid_draws(flow_sigmas(4), 3, 4, generator(0, "t"))) == 4


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("low", "high"), [(0.6, 1.0), (0.0, 1.0), (0.3, 0.4)])
def test_draws_fill_their_range(name, low, high):
    t = DRAWS[name](4000, low, high, generator(0, name))
    assert t.shape == (4000,)
    assert t.dtype == torch.float32
    assert t.min() >= torch.tensor(low)
    assert t.max() <= torch.tensor(high)
    assert t.max() - t.min() > 0.9 * (high - low)
    assert torch.equal(t, DRAWS[name](4000, low, high, generator(0, name)))


def test_strata_hold_one_draw_each():
    t = stratified_draws(8, 0.2, 1.0, generator(0, "t"))
    assert ((t - 0.2) / 0.1).floor().tolist() == list(range(8))


def test_truncated_logit_normal_is_the_conditioned_law():
    t = logit_normal_draws(20000, 0.5, 1.0, generator(0, "t"), mean=0.3, std=0.8)
    z = 0.3 + 0.8 * torch.randn(200000, generator=generator(1, "t"))
    expected = torch.sigmoid(z)[z >= 0]
    for q in (0.1, 0.5, 0.9):
        torch.testing.assert_close(t.quantile(q), expected.quantile(q), rtol=0, atol=0.01)


def test_linear_draws_have_a_density_that_grows_with_t():
    """The share below t is (t^2 - t_min^2) / (t_max^2 - t_min^2)."""
    t = linear_draws(20000, 0.2, 0.8, generator(0, "t"))
    for value in (0.3, 0.5, 0.7):
        assert (t < value).double().mean().item() == pytest.approx((value**2 - 0.04) / 0.6, abs=0.01)
