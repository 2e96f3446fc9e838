"""AWM's loss against hand-computed numbers and the gradient of its log-likelihood; its points; its settings."""

import math

import pytest
import torch
from made import (
    first_point,
    gradient,
    make_rollout,
    make_velocities,
    of_latents,
)

from dgpo.algorithms import AWM
from dgpo.algorithms.base import Algorithm
from dgpo.core.losses import dsm_loss
from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.types import TrainPoint, Velocities


def test_hand_computed():
    """t = .5, power .5: log p = -(.5 / .5) d^.5, with d = 2^2 and d_old = 2.1^2 a ratio of exp(-2 + 2.1) = 1.105."""
    rollout = of_latents([[0.0], [0.0]], [2.0, -1.0])
    column = lambda value: torch.full((2, 1), value, dtype=torch.float64)
    point = TrainPoint(column(0.0), torch.tensor([0.5, 0.5]).double(), column(1.0))
    velocities = Velocities(policy=column(3.0), ref=column(2.5), old=column(3.1))
    algorithm = AWM(power=0.5, clip_range=0.05, kl_coef=0.1, advantage_clip=2.0)
    loss, metrics = algorithm.loss(point, velocities, rollout)
    ppo = (-1 * 1.05 + 0.5 * math.exp(0.1)) / 2  # A / 2; clipped where it is 1, not where it is -1/2
    assert loss.item() == pytest.approx(ppo + 0.1 * 0.25, rel=1e-8)
    expected = {"loss": loss.item(), "dsm": 4.0, "ratio": math.exp(0.1), "clip_fraction": 0.5, "kl": 0.25}
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("power", [0.25, 1.0])
@pytest.mark.parametrize("weight_by_t", [True, False])
def test_at_ratio_one_it_is_the_gradient_of_the_weighted_log_likelihood(power, weight_by_t):
    algorithm, rollout = AWM(power=power, weight_by_t=weight_by_t, kl_coef=0.0), make_rollout()
    point = first_point(rollout, algorithm)
    v = make_velocities(point)
    v = v._replace(old=v.policy.detach())
    assert algorithm.loss(point, v, rollout)[1]["ratio"] == 1
    log_prob = -(point.t if weight_by_t else 1) / power * dsm_loss(v.policy, point.target) ** power
    (expected,) = torch.autograd.grad(-(rollout.advantages / 5 * log_prob).mean(), v.policy)
    torch.testing.assert_close(gradient(algorithm, point, v, rollout), expected, rtol=1e-6, atol=1e-14)


def test_an_image_that_has_moved_far_enough_gives_no_gradient():
    algorithm, rollout = AWM(clip_range=1e-4, kl_coef=0.0), make_rollout()
    point = first_point(rollout, algorithm)
    v = make_velocities(point)
    log_p, log_p_old = (-4 * point.t * dsm_loss(x, point.target) ** 0.25 for x in (v.policy, v.old))
    ratio = (log_p - log_p_old).exp()
    clipped = torch.where(rollout.advantages > 0, ratio > 1.0001, ratio < 0.9999)
    assert 0 < clipped.sum() < 12
    assert ((gradient(algorithm, point, v, rollout).flatten(1).norm(dim=1) == 0) == clipped).all()


def test_a_perfect_prediction_has_a_finite_gradient():
    """The power's slope at d = 0 is infinite."""
    algorithm, rollout = AWM(kl_coef=0.0), make_rollout()
    point = first_point(rollout, algorithm)
    v = Velocities(point.target.clone().requires_grad_(), old=point.target)
    assert gradient(algorithm, point, v, rollout).isfinite().all()


def test_points_lie_in_even_parts_of_the_range():
    algorithm, rollout = AWM(), make_rollout()
    points = list(algorithm.points(rollout, generator(0, "points")))
    assert len(points) == algorithm.points_per_update(10) == 6
    t = torch.stack([point.t[0] for point in points])
    assert ((t.sort().values - 0.35) / (0.98 - 0.35) * 6).floor().tolist() == [0, 1, 2, 3, 4, 5]
    noise = torch.stack([point.target + rollout.x0 for point in points])
    assert len(noise[:, :, 0, 0, 0].unique()) == 6 * 12, "each image has its own noise"


def test_what_the_loop_is_told():
    algorithm: Algorithm = AWM()
    assert algorithm.sampler(0, 10, generator(0, "sampler")) is None
    assert (algorithm.couples_group, algorithm.skips_zero, algorithm.old_follows) == (False, False, "rollout")
    assert algorithm.rollout_weights(1000) == "policy"
    assert algorithm.old_decay(1000) == 0.0, "`old` is the policy that drew the rollout"
    assert (algorithm.policy_guidance(4.5), algorithm.ref_guidance(4.5)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": 0.0}, "power=0.0"),
        ({"power": 1.5}, "power=1.5"),
        ({"clip_range": 0.0}, "clip_range=0.0"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0"),
        ({"t_min": 0.98}, "t_min=0.98"),
        ({"num_points": 0}, "num_points=0"),
        ({"std": "none"}, "std='none'"),
        ({"advantage_clip": 0.0}, "advantage_clip=0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        AWM(**settings)
