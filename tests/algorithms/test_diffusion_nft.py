"""DiffusionNFT's loss against hand-computed numbers and its equation; what the loop is told; its settings."""

import pytest
import torch
from made import (
    first_point,
    gradient,
    make_rollout,
    make_velocities,
    of_latents,
)

from dgpo.algorithms import DiffusionNFT
from dgpo.algorithms.base import Algorithm
from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.types import TrainPoint, Velocities


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_hand_computed():
    """t = .5 and b = .5, so v+ = (1.5 + 1) / 2 = 1.25 and v- = 1.5 * 1.5 - .5 = 1.75 in both elements.
    good: x0_hat+ - x0 = (2 - .625 - 1, 0 - .625 - 0), mean square .265625, w .5; bad: (.125, -.875), .390625, .5."""
    rollout = of_latents([[1.0, 0.0]] * 2, [2.5, -5.0])
    x_t, target = rows([2.0, 0.0], [2.0, 0.0]), rows([2.0, 0.0], [2.0, 0.0])
    both = lambda value: rows([value] * 2, [value] * 2)
    velocities = Velocities(policy=both(1.0), ref=both(0.5), old=both(1.5))
    loss, metrics = DiffusionNFT(mix=0.5, kl_coef=0.1).loss(
        TrainPoint(x_t, rows(0.5, 0.5), target), velocities, rollout
    )
    first, second = 0.75 * 0.53125 + 0.25 * 0.78125, 0.78125  # rho is 3/4 and 0
    assert loss.item() == pytest.approx(10 * (first + second) / 2 + 0.1 * 0.25, rel=1e-12)
    expected = {"loss": loss.item(), "rho": 0.375, "moved": 0.25, "kl": 0.25}
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(expected, rel=1e-6)


def weights(x0_hat, x0):
    return (x0_hat - x0).detach().abs().mean((1, 2, 3)).clamp(min=1e-5)


def equation(algorithm, point, v, rollout):
    """math.md's line, the errors of both predictions divided by their detached size."""
    b, t = algorithm.mix, point.t.reshape(-1, 1, 1, 1)
    rho = (rollout.advantages / algorithm.advantage_clip).clip(-1, 1) / 2 + 0.5
    terms = []
    for share, mixed in ((rho, (1 - b) * v.old + b * v.policy), (1 - rho, (1 + b) * v.old - b * v.policy)):
        x0_hat = point.x_t - t * mixed
        terms.append(share * ((x0_hat - rollout.x0) ** 2).mean((1, 2, 3)) / weights(x0_hat, rollout.x0))
    kl = ((v.policy - v.ref) ** 2).mean()
    return algorithm.advantage_clip / b * (terms[0] + terms[1]).mean() + algorithm.kl_coef * kl


@pytest.mark.parametrize("mix", [0.1, 1.0])
def test_loss_and_gradient_are_those_of_the_equation(mix):
    algorithm, rollout = DiffusionNFT(mix=mix, kl_coef=0.3, advantage_clip=2.0), make_rollout()
    point = first_point(rollout, algorithm)
    v = make_velocities(point, near=0.2)
    expected = equation(algorithm, point, v, rollout)
    torch.testing.assert_close(algorithm.loss(point, v, rollout)[0], expected)
    (grad,) = torch.autograd.grad(expected, v.policy)
    torch.testing.assert_close(gradient(algorithm, point, v, rollout), grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("mix", [0.1, 1.0])
def test_where_old_is_the_policy_it_is_the_advantage_weighted_regression(mix):
    """Gradient of mean A (x0_hat - x0)^2 / w: b cancels, and no image of advantage 0 pulls anywhere."""
    algorithm, rollout = DiffusionNFT(mix=mix, kl_coef=0.0), make_rollout()
    advantages = rollout.advantages.clone()
    advantages[3] = 0.0
    rollout = rollout._replace(advantages=advantages)
    point = first_point(rollout, algorithm)
    v = make_velocities(point)
    v = v._replace(old=v.policy.detach())
    x0_hat = point.x_t - point.t.reshape(-1, 1, 1, 1) * v.policy
    pull = ((x0_hat - rollout.x0) ** 2).mean((1, 2, 3)) / weights(x0_hat, rollout.x0)
    (expected,) = torch.autograd.grad((advantages * pull).mean(), v.policy)
    found = gradient(algorithm, point, v, rollout)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert found[3].abs().max() < 1e-15


def test_beyond_the_clip_an_image_is_good_or_bad_for_certain():
    algorithm, rollout = DiffusionNFT(advantage_clip=2.0, kl_coef=0.0), make_rollout()
    point = first_point(rollout, algorithm)
    v = make_velocities(point)
    signs = rollout.advantages.sign()
    far, edge = (rollout._replace(advantages=size * signs) for size in (9.0, 2.0))
    assert torch.equal(algorithm.loss(point, v, far)[0], algorithm.loss(point, v, edge)[0])
    assert not torch.equal(
        algorithm.loss(point, v, rollout._replace(advantages=signs))[0], algorithm.loss(point, v, far)[0]
    )


def test_a_perfect_prediction_divides_by_no_zero():
    algorithm, rollout = DiffusionNFT(kl_coef=0.0), make_rollout()
    point = first_point(rollout, algorithm)
    loss, _ = algorithm.loss(point, Velocities(point.target.clone(), old=point.target), rollout)
    assert abs(loss.item()) < 1e-6


def test_points_visit_nearly_all_levels_each_group_in_its_own_order():
    algorithm, rollout = DiffusionNFT(), make_rollout()
    points = list(algorithm.points(rollout, generator(0, "points")))
    assert len(points) == algorithm.points_per_update(10) == 9
    by_group = torch.stack([point.t for point in points]).reshape(9, 3, 4)
    assert (by_group == by_group[:, :, :1]).all()
    orders = by_group[:, :, 0].T.tolist()
    assert all(set(order) == set(rollout.sigmas[:9].tolist()) for order in orders)
    assert orders[0] != orders[1]
    noise = torch.stack([point.target + rollout.x0 for point in points])
    assert len(noise[:, :, 0, 0, 0].unique()) == 9 * 12, "each image has its own noise"


def test_what_the_loop_is_told():
    algorithm: Algorithm = DiffusionNFT()
    assert algorithm.sampler(0, 10, generator(0, "sampler")) is None
    assert (algorithm.couples_group, algorithm.skips_zero, algorithm.old_follows) == (False, False, "rollout")
    assert [algorithm.rollout_weights(i) for i in (0, 1000)] == ["old", "old"]
    assert (algorithm.policy_guidance(4.5), algorithm.ref_guidance(4.5)) == (1.0, 1.0)
    assert [algorithm.old_decay(step) for step in (0, 100, 1000)] == [0.0, 0.1, 0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": 0.0}, "mix=0.0"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0"),
        ({"old_decay_rate": -0.1}, "old_decay_rate=-0.1"),
        ({"old_max_decay": 1.0}, "old_max_decay=1.0"),
        ({"num_points": 10}, "num_points=10"),
        ({"std": "none"}, "std='none'"),
        ({"advantage_clip": 0.0}, "advantage_clip=0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        DiffusionNFT(**settings)
