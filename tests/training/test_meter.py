"""The noise scale is measured right, and measuring leaves the gradient as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dgpo.core.seeds import generator
from dgpo.training.meter import GradientMeter, NoiseAverage


def accumulate(parameters, shares, cut=None):
    """Add each group's share to `.grad`, as its backward would; a share of None leaves it alone."""
    for share in shares:
        for parameter, gradient in zip(parameters, share):
            if gradient is not None:
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
        if cut:
            cut()


def test_the_whole_gradient_is_put_back():
    parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(1))]
    rng = generator(0, "shares")
    draw = lambda *shape: torch.randn(shape, generator=rng)
    shares = [(draw(3, 2), None, None), *((draw(3, 2), draw(5), None) for _ in range(3))]
    accumulate(parameters, shares)
    whole = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    meter = GradientMeter(parameters)
    accumulate(parameters, shares, meter.cut)
    sq_norms = meter.finish()
    assert whole[2] is parameters[2].grad is None
    torch.testing.assert_close([p.grad for p in parameters[:2]], whole[:2], rtol=0, atol=0)
    expected = [sum(float(g.square().sum()) for g in share if g is not None) for share in shares]
    assert sq_norms.tolist() == pytest.approx(expected, rel=1e-6)


def test_known_signal_and_noise_are_found():
    """Group gradients G + e with |G|^2 = 4 and E|e|^2 = 20: the noise scale is 5 groups."""
    dimensions, groups = 200, 16
    signal = torch.ones(dimensions) * math.sqrt(4 / dimensions)
    parameter, average, rng = nn.Parameter(torch.zeros(dimensions)), NoiseAverage(decay=0.995), generator(0, "noise")
    for _ in range(300):
        noise = torch.randn(groups, dimensions, generator=rng) * math.sqrt(20 / dimensions)
        parameter.grad, meter = None, GradientMeter([parameter])
        accumulate([parameter], [(gradient / groups,) for gradient in signal + noise], meter.cut)
        sq_norms = meter.finish()
        assert parameter.grad is not None
        average.add(sq_norms, float(parameter.grad.square().sum()))
    assert average.signal == pytest.approx(4, rel=0.05)
    assert average.noise == pytest.approx(20, rel=0.02)
    assert average.groups == pytest.approx(5, rel=0.06)


def test_the_average_starts_at_the_first_estimate():
    average = NoiseAverage()
    assert average.groups == math.inf
    average.add(torch.tensor([2.0, 2.0]), 5.0)  # mean gradients of 2 groups: |g|^2 = 8, 8; whole 5
    assert (average.signal, average.noise) == (2.0, 6.0)
    average.add(torch.tensor([2.0, 2.0]), 6.0)
    assert (average.signal, average.noise) == (3.0, 5.0), "a plain mean at first"
    for _ in range(30):
        average.add(torch.tensor([2.0, 2.0]), 4.0)
    assert average.signal == pytest.approx(0.0, abs=0.2), "later the past fades"
