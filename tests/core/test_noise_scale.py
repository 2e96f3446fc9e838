"""The estimators recover a known signal and noise."""

import math

import pytest
import torch

from dgpo.core.noise_scale import noise_scale


def test_expected_norms_give_the_truth_back():
    signal, noise = 4.0, 60.0  # E |g_B|^2 = |G|^2 + tr(Sigma) / B
    small, whole = signal + noise / 2, signal + noise / 12
    estimate = noise_scale(torch.full((6,), small), whole, micro_size=2, whole_size=12)
    assert estimate.signal == pytest.approx(signal)
    assert estimate.noise == pytest.approx(noise)
    assert estimate.scale == pytest.approx(15.0)


def test_unbiased_on_simulated_gradients():
    g = torch.Generator().manual_seed(0)
    mean = torch.tensor([1.0, -2.0, 0.5])
    estimates = []
    for _ in range(300):
        samples = mean + 3 * torch.randn(8, 4, 3, generator=g)  # 8 micro-batches of 4
        micro = samples.mean(1).square().sum(-1)
        estimates.append(noise_scale(micro, samples.mean((0, 1)).square().sum(), 4, 32))
    assert sum(e.signal for e in estimates) / 300 == pytest.approx(5.25, rel=0.1)
    assert sum(e.noise for e in estimates) / 300 == pytest.approx(27.0, rel=0.1)


def test_pure_noise_has_an_infinite_scale():
    assert noise_scale(torch.tensor([1.0]), 0.1, 1, 10).scale == math.inf


def test_sizes_that_tell_nothing_apart_are_refused():
    with pytest.raises(ValueError, match="micro_size=8"):
        noise_scale(torch.tensor([1.0]), 1.0, 8, 8)
