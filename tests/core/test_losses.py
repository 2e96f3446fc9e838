"""Per-image losses against hand-computed numbers."""

import math

import pytest
import torch

from dgpo.core.losses import clipped_surrogate, dsm_clip_mask, dsm_loss, gaussian_kl, self_normalized, velocity_kl


def test_dsm_is_the_mean_square_of_each_image():
    v = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    target = torch.tensor([[[0.0, 4.0]], [[0.0, 0.0]]])
    assert dsm_loss(v, target).tolist() == [2.5, 0.0]
    assert velocity_kl(v, target).tolist() == [2.5, 0.0]


def test_half_precision_is_squared_in_fp32_and_float64_is_kept():
    v = torch.tensor([[300.0]], dtype=torch.float16)
    assert dsm_loss(v, torch.zeros(1, 1)).tolist() == [90000.0]
    assert dsm_loss(v.double(), torch.zeros(1, 1)).dtype == torch.float64


def test_self_normalized_is_the_square_over_the_size_which_has_no_gradient():
    a = torch.tensor([[1.0, 3.0], [4.0, 4.0], [5.0, 5.0]], requires_grad=True)
    terms = self_normalized(a, torch.tensor([[0.0, 0.0], [0.0, 8.0], [5.0, 5.0]]))
    torch.testing.assert_close(terms, torch.tensor([5.0 / 2, 16.0 / 4, 0.0]))
    (grad,) = torch.autograd.grad(terms.sum(), a)
    torch.testing.assert_close(grad, torch.tensor([[1 / 2, 3 / 2], [1.0, -1.0], [0.0, 0.0]]))  # (a - b) / size


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(1, 2\)"):
        dsm_loss(torch.zeros(4, 2), torch.zeros(1, 2))


def test_clip_mask_by_sign_and_side():
    ratios = torch.tensor([1.2, 1.05, 0.8, 0.8, 0.95, 1.2, 0.8])
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.0])
    mask = dsm_clip_mask(-ratios.log(), torch.zeros(7), advantages, clip_range=0.1)
    assert mask.tolist() == [True, False, False, True, False, False, True]


def test_clipped_surrogate_is_ppo():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    loss = clipped_surrogate(ratio, torch.tensor([2.0, -2.0, 2.0, -2.0]), clip_range=0.2)
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6])
    loss.sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [0.0, 2.0, -2.0, 0.0]
    assert math.isclose(loss.sum().item(), 1.2, rel_tol=1e-6)


def test_gaussian_kl_is_torchs_averaged_over_elements():
    mean, mean_ref = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]), torch.tensor([[[0.0, 4.0]], [[0.0, 3.0]]])
    std = torch.tensor([0.5, 2.0]).reshape(2, 1, 1)
    kl = gaussian_kl(mean, mean_ref, std)
    assert kl.tolist() == [5 / 2 / 0.5, 9 / 2 / 8]
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(mean, std.expand(2, 1, 2)), normal(mean_ref, std.expand(2, 1, 2)))
    torch.testing.assert_close(kl, exact.mean((1, 2)))
