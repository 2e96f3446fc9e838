"""RAM's loss against hand-computed numbers and the gradient that it stands for; its points; its settings."""

import pytest
import torch
from made import assert_gradcheck, first_point, gradient, make_rollout, make_velocities, of_latents

from dgpo.algorithms import DGPO, RAM
from dgpo.algorithms.base import Algorithm
from dgpo.core.losses import dsm_loss, velocity_kl
from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.types import TrainPoint, Velocities


@pytest.mark.parametrize(
    ("sampler_weights", "expected"),
    [
        ("old", (9.0 + 0.75**2) / 2),  # corrected velocities: 2.5 + .5 A (1 - 3.5) = 0 and 3.75; v = 3
        ("policy", (2.5**2 + 0.5**2) / 2),  # 2.5 + .5 A (1 - 3) = .5 and 3.5
    ],
)
def test_hand_computed(sampler_weights, expected):
    rollout = of_latents([[0.0], [0.0]], [2.0, -1.0])
    column = lambda value: torch.full((2, 1), value, dtype=torch.float64)
    point = TrainPoint(column(0.0), torch.tensor([0.5, 0.5]).double(), column(1.0))
    velocities = Velocities(policy=column(3.0), ref=column(2.5), old=column(3.5))
    loss, metrics = RAM(reward_scale=0.5, sampler_weights=sampler_weights).loss(point, velocities, rollout)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(
        {"loss": expected, "dsm": 4.0, "kl": 0.25}, rel=1e-6
    )


def moved(**settings):
    algorithm, rollout = RAM(reward_scale=3.0, **settings), make_rollout()
    point = first_point(rollout, algorithm)
    return algorithm, rollout, point, make_velocities(point, near=0.1)


def test_the_gradient_is_a_pull_to_the_reference_and_a_policy_gradient():
    """The equation of the paper is the gradient of |v - v_ref|^2 + lambda A d, whose value it does not have."""
    algorithm, rollout, point, v = moved(sampler_weights="policy")
    plain = (velocity_kl(v.policy, v.ref) + 3 * rollout.advantages * dsm_loss(v.policy, point.target)).mean()
    (expected,) = torch.autograd.grad(plain, v.policy)
    torch.testing.assert_close(gradient(algorithm, point, v, rollout), expected, rtol=1e-10, atol=1e-14)
    assert algorithm.loss(point, v, rollout)[0] != plain


def test_it_is_dgpo_without_group_weight_and_clip():
    """Whose groups weigh 1/2 where beta is 0, and the KL that corresponds to lambda."""
    algorithm, rollout, point, v = moved(sampler_weights="policy")
    dgpo = DGPO(beta=0.0, kl_coef=1 / (2 * 3), clip_range=None)
    expected = 2 * 3 * gradient(dgpo, point, v, rollout)
    torch.testing.assert_close(gradient(algorithm, point, v, rollout), expected, rtol=1e-8, atol=1e-14)


def test_with_old_the_error_is_that_of_who_drew_the_image():
    algorithm, rollout, point, v = moved()
    error = (v.policy * (v.old - point.target)).flatten(1).mean(1)
    plain = (velocity_kl(v.policy, v.ref) + 2 * 3 * rollout.advantages * error).mean()
    (expected,) = torch.autograd.grad(plain, v.policy)
    torch.testing.assert_close(gradient(algorithm, point, v, rollout), expected, rtol=1e-10, atol=1e-14)
    assert_gradcheck(algorithm, point, v, rollout)


def test_points_favour_noise_and_each_group_and_image_has_its_own():
    algorithm, rollout = RAM(), make_rollout(30, 4)
    points = list(algorithm.points(rollout, generator(0, "points")))
    assert len(points) == algorithm.points_per_update(10) == 8
    t = torch.stack([point.t.reshape(30, 4) for point in points])
    assert torch.equal(t, t[:, :, :1].expand_as(t))
    assert len(t.unique()) == 8 * 30
    assert t.mean() == pytest.approx(2 / 3, abs=0.05), "of a density 2 t"
    noise = torch.stack([point.target + rollout.x0 for point in points])
    assert len(noise[:, :, 0, 0, 0].unique()) == 8 * 120


@pytest.mark.parametrize(("sampler_weights", "follows"), [("old", "rollout"), ("policy", "step")])
def test_what_the_loop_is_told(sampler_weights, follows):
    algorithm: Algorithm = RAM(sampler_weights=sampler_weights)
    assert algorithm.sampler(0, 10, generator(0, "sampler")) is None
    assert (algorithm.couples_group, algorithm.skips_zero, algorithm.old_follows) == (False, False, follows)
    assert {algorithm.rollout_weights(i) for i in (0, 1000)} == {sampler_weights}
    assert [algorithm.old_decay(step) for step in (0, 50, 1000)] == [0.0, 0.5, 0.9]
    assert (algorithm.policy_guidance(4.5), algorithm.ref_guidance(4.5)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_scale": 0.0}, "reward_scale=0.0"),
        ({"sampler_weights": "ema"}, "sampler_weights='ema' is not known; use one of old, policy"),
        ({"old_decay_rate": -0.1}, "old_decay_rate=-0.1"),
        ({"old_max_decay": 1.0}, "old_max_decay=1.0"),
        ({"t_min": 1.0}, "t_min=1.0"),
        ({"num_points": 0}, "num_points=0"),
        ({"std": "none"}, "std='none'"),
        ({"advantage_clip": 0.0}, "advantage_clip=0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        RAM(**settings)
