"""Diffusion-DPO's loss against hand-computed numbers and the plain loss; its pairs; its settings."""

import math

import pytest
import torch
from made import (
    SPLITS,
    first_point,
    gradient,
    gradient_in_parts,
    make_rollout,
    make_velocities,
    of_latents,
)
from torch.nn.functional import logsigmoid

from dgpo.algorithms import DGPO, DiffusionDPO
from dgpo.algorithms.base import Algorithm
from dgpo.core.losses import dsm_loss
from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.types import TrainPoint, Velocities

BEST, WORST = [1, 2, 4, 7, 9, 10], [0, 3, 5, 6, 8, 11]


def pairs():
    """Six groups of two, the order of best and worst mixed; apart from their reference, so that weights differ."""
    better = torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0])
    rollout = make_rollout(6, 2, rewards=better)
    algorithm = DiffusionDPO(beta=20.0)
    advantages = algorithm.advantages(better, rollout.group_index, 6).double()
    rollout = rollout._replace(advantages=advantages)
    point = first_point(rollout, algorithm)
    return algorithm, rollout, point, make_velocities(point, near=0.1)


def plain_loss(algorithm, point, v):
    """math.md's line, differentiable as it stands."""
    margin = dsm_loss(v.policy, point.target) - dsm_loss(v.ref, point.target)
    return -logsigmoid(-algorithm.beta / 2 * (margin[BEST] - margin[WORST])).mean()


def test_hand_computed():
    """d - d_ref of best and worst: 1 - 4 and 4 - 1 in the first group, 4 - 1 and 0 - 0 in the second."""
    rollout = of_latents([[0.0]] * 4, [1.0, -1.0, -1.0, 1.0])
    column = lambda *values: torch.tensor(values, dtype=torch.float64).reshape(-1, 1)
    point = TrainPoint(column(0, 0, 0, 0), torch.full((4,), 0.5).double(), column(0, 0, 0, 0))
    velocities = Velocities(policy=column(1, 2, 0, 2), ref=column(2, 1, 0, 1))
    loss, metrics = DiffusionDPO(beta=0.5).loss(point, velocities, rollout)
    first, second = 0.25 * (-3 - 3), 0.25 * (3 - 0)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(first)) + math.log(1 + math.exp(second))) / 2)
    weights = [1 / (1 + math.exp(-first)), 1 / (1 + math.exp(-second))]
    expected = {"loss": loss.item(), "dsm": 9 / 4, "pair_weight": sum(weights) / 2, "ordered": 0.5}
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(expected, rel=1e-6)


def test_loss_and_gradient_are_those_of_the_plain_loss():
    algorithm, rollout, point, v = pairs()
    expected = plain_loss(algorithm, point, v)
    torch.testing.assert_close(algorithm.loss(point, v, rollout)[0], expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(expected, v.policy)
    torch.testing.assert_close(gradient(algorithm, point, v, rollout), grad, rtol=1e-10, atol=1e-14)


def test_it_is_dgpo_with_groups_of_two():
    """DGPO's surrogate leaves out beta, and the size of a group divides it."""
    algorithm, rollout, point, v = pairs()
    dgpo = DGPO(beta=algorithm.beta, kl_coef=0.0, clip_range=None)
    expected = algorithm.beta * gradient(dgpo, point, v, rollout)
    torch.testing.assert_close(gradient(algorithm, point, v, rollout), expected, rtol=1e-10, atol=1e-14)


def test_the_two_of_a_pair_need_each_other():
    """Alone, an image does not know its pair's margin: that parts equal the whole is the statistics pass's doing."""
    algorithm, rollout, point, v = pairs()
    whole = gradient(algorithm, point, v, rollout)
    losses = [algorithm.loss(point.rows(p), v.rows(p), rollout.rows(p))[0] for p in SPLITS["one by one"]]
    (alone,) = torch.autograd.grad(torch.stack(losses).mean(), v.policy)
    assert (alone - whole).norm() > 1e-2 * whole.norm()
    assert torch.equal(gradient_in_parts(algorithm, point, v, rollout, [torch.arange(12)])[0], whole)


def test_advantages_mark_the_best_and_the_worst_of_unequal_groups():
    rewards = torch.tensor([0.3, 0.9, 0.1, 0.9, 0.5, 0.5, 0.5, -1.0, 2.0])
    index = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    advantages = DiffusionDPO().advantages(rewards, index, 3)
    assert advantages.tolist() == [0, 1, -1, 0, 0, 0, 0, -1, 1]
    assert advantages.dtype == torch.float32


def test_a_pair_shares_t_and_noise():
    algorithm, rollout = DiffusionDPO(), make_rollout(6, 2)
    points = list(algorithm.points(rollout, generator(0, "points")))
    assert len(points) == algorithm.points_per_update(10) == 4
    for point in points:
        noise = (point.target + rollout.x0).reshape(6, 2, -1)
        torch.testing.assert_close(noise[:, 0], noise[:, 1])
        t = point.t.reshape(6, 2)
        assert torch.equal(t[:, 0], t[:, 1])
        assert len(t[:, 0].unique()) == 6, "each pair has its own"


def test_what_the_loop_is_told():
    algorithm: Algorithm = DiffusionDPO()
    assert algorithm.sampler(0, 10, generator(0, "sampler")) is None
    assert (algorithm.couples_group, algorithm.skips_zero) == (True, True)
    assert algorithm.rollout_weights(1000) == "policy"
    assert (algorithm.policy_guidance(4.5), algorithm.ref_guidance(4.5)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"shared_noise": False}, "shared_noise=False"),
        ({"num_points": 0}, "num_points=0"),
        ({"t_max": 1.1}, "t_max=1.1"),
        ({"t_sampling": "normal"}, "t_sampling='normal'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        DiffusionDPO(**settings)
