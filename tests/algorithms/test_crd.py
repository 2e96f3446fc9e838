"""CRD's loss against hand-computed numbers and its plain objective; what the loop is told; its settings."""

import pytest
import torch
from made import (
    SPLITS,
    assert_gradcheck,
    assert_parts_equal_the_whole,
    first_point,
    gradient,
    make_rollout,
    make_velocities,
    of_latents,
)

from dgpo.algorithms import CRD
from dgpo.algorithms.base import Algorithm
from dgpo.core.advantages import group_advantages
from dgpo.core.groups import group_mean
from dgpo.core.losses import dsm_loss
from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.types import TrainPoint, Velocities

PLAIN = CRD(beta=2.0, self_normalized=False, kl_coef=0.0)


def column(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)


@pytest.mark.parametrize(
    ("self_normalized", "rho", "misfit"),
    [
        (False, (1.5, 0.0), 0.25),  # d_old - d is 4 - 1 and 4 - 4; rho - a is 1.25 and .25, around .75
        (True, (0.5, 0.0), 0.0),  # divided by the errors: 2 - 1 and 2 - 2; rho - a is .25 and .25
    ],
)
@pytest.mark.parametrize(("adaptive", "weights"), [(True, (0.075025, 0.025075)), (False, (0.1, 0.1))])
def test_hand_computed(self_normalized, rho, misfit, adaptive, weights):
    """a = A / 4; the KL weighs 1e-4 + (a + 1/2) .0999, or .1."""
    rollout = of_latents([[0.0], [0.0]], [1.0, -1.0])
    point = TrainPoint(column(0, 0), torch.full((2,), 0.5).double(), column(0, 0))
    velocities = Velocities(policy=column(1, 2), ref=column(0, 2.5), old=column(2, 2))
    algorithm = CRD(beta=0.5, advantage_clip=2.0, self_normalized=self_normalized, adaptive_kl=adaptive)
    loss, metrics = algorithm.loss(point, velocities, rollout)
    kl = (weights[0] * 1 + weights[1] * 0.25) / 2
    assert loss.item() == pytest.approx(2 / 0.5 * misfit + kl, rel=1e-9)
    expected = {"loss": loss.item(), "dsm": 2.5, "implicit_reward": sum(rho) / 2, "misfit": misfit, "kl": 0.625}
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(expected, rel=1e-6)


def unequal():
    """Groups of 5, 4 and 3, the policy and `old` apart; each group's advantages sum to 0."""
    rollout, sizes = make_rollout(), torch.tensor([5, 4, 3])
    index = torch.arange(3).repeat_interleave(sizes)
    advantages = group_advantages(rollout.rewards, index, 3).double()
    advantages -= group_mean(advantages, index, 3)[index]  # of what rounding to fp32 has left
    rollout = rollout._replace(group_index=index, group_sizes=sizes, advantages=advantages)
    point = first_point(rollout, PLAIN)
    return rollout, point, make_velocities(point, near=0.1)


def plain_loss(algorithm, point, v, rollout):
    """The equation as it stands, differentiable through the means of the groups."""
    rho = algorithm.beta * (dsm_loss(v.old, point.target) - dsm_loss(v.policy, point.target))
    reward = rollout.advantages / (2 * algorithm.advantage_clip)
    centre = lambda x: torch.cat([part - part.mean() for part in x.split(rollout.group_sizes.tolist())])
    return algorithm.advantage_clip / algorithm.beta * (centre(rho) - centre(reward)).square().mean()


def test_loss_and_gradient_are_those_of_the_plain_objective():
    """The gradient of the mean drops out, as the residuals of a group sum to 0."""
    rollout, point, v = unequal()
    expected = plain_loss(PLAIN, point, v, rollout)
    torch.testing.assert_close(PLAIN.loss(point, v, rollout)[0], expected, rtol=1e-10, atol=0)
    (grad,) = torch.autograd.grad(expected, v.policy)
    torch.testing.assert_close(gradient(PLAIN, point, v, rollout), grad, rtol=1e-9, atol=1e-14)
    assert_gradcheck(PLAIN, point, v, rollout)


@pytest.mark.parametrize("parts", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("algorithm", [PLAIN, CRD()])
def test_groups_of_different_sizes_may_be_split(algorithm, parts):
    rollout, point, v = unequal()
    assert_parts_equal_the_whole(algorithm, point, v, rollout, parts)


def test_where_the_policy_is_old_it_is_the_weighted_denoising_loss():
    rollout, point, v = unequal()
    v = v._replace(old=v.policy.detach())
    (expected,) = torch.autograd.grad((rollout.advantages * dsm_loss(v.policy, point.target)).mean(), v.policy)
    torch.testing.assert_close(gradient(PLAIN, point, v, rollout), expected, rtol=1e-9, atol=1e-14)


def test_what_all_images_of_a_prompt_have_in_common_counts_for_nothing():
    rollout, point, v = unequal()
    raised = rollout._replace(advantages=rollout.advantages + torch.tensor([0.7, -3.0, 0.0])[rollout.group_index])
    for algorithm in (PLAIN, CRD(adaptive_kl=False)):
        expected = gradient(algorithm, point, v, rollout)
        torch.testing.assert_close(gradient(algorithm, point, v, raised), expected, rtol=1e-9, atol=1e-12)


def test_a_policy_whose_own_rewards_are_the_given_ones_is_left_alone():
    """Two images: rho = 2 (4 - 3.75) = .5 and 2 (4 - 4.25) = -.5 are what A = 5 and -5 ask for. Further is too far."""
    rollout = of_latents([[0.0], [0.0]], [5.0, -5.0])
    point = TrainPoint(column(0, 0), torch.full((2,), 0.5).double(), column(0, 0))
    signs = []
    for change in (0.0, 0.25, 0.5):
        policy = column((4 - change) ** 0.5, (4 + change) ** 0.5).requires_grad_()
        v = Velocities(policy, old=column(2, 2))
        loss = PLAIN.loss(point, v, rollout)[0]
        (grad,) = torch.autograd.grad(loss, policy)
        signs.append((grad.abs() > 1e-12).int().mul(grad.sign().int()).flatten().tolist())
        assert (loss.item() < 1e-20) == (change == 0.25)
    assert signs == [[1, -1], [0, 0], [-1, 1]]


def test_a_kl_smaller_than_the_smallest_weight_stays_as_small():
    rollout, point, v = unequal()
    for coef in (1e-6, 1e-4):
        adaptive, constant = (CRD(kl_coef=coef, adaptive_kl=adaptive) for adaptive in (True, False))
        assert adaptive.loss(point, v, rollout)[0] == constant.loss(point, v, rollout)[0]


def test_a_perfect_prediction_has_a_finite_gradient():
    rollout, point, v = unequal()
    v = Velocities(point.target.clone().requires_grad_(), ref=v.ref, old=v.old)
    assert gradient(CRD(), point, v, rollout).isfinite().all()


def test_points_are_nine_of_ten_noise_levels():
    algorithm, rollout = CRD(), make_rollout()
    points = list(algorithm.points(rollout, generator(0, "points")))
    assert len(points) == algorithm.points_per_update(10) == 9
    t = torch.stack([point.t.reshape(3, 4)[:, 0] for point in points])
    assert torch.equal(t.sort(0, descending=True).values, rollout.sigmas[:9, None].expand(9, 3))
    assert not torch.equal(t[:, 0], t[:, 1]), "each group has its own order"


def test_what_the_loop_is_told():
    algorithm: Algorithm = CRD()
    assert algorithm.sampler(0, 10, generator(0, "sampler")) is None
    assert (algorithm.couples_group, algorithm.skips_zero, algorithm.old_follows) == (True, False, "rollout")
    assert algorithm.rollout_weights(1000) == "policy", "not `old`, from which it is measured"
    assert [algorithm.old_decay(step) for step in (0, 50, 1000)] == [0.25, 0.5, 0.999]
    assert (algorithm.policy_guidance(4.5), algorithm.ref_guidance(1.0)) == (1.0, 4.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0"),
        ({"ref_guidance_scale": 0.5}, "ref_guidance_scale=0.5"),
        ({"old_first_decay": 1.0}, "old_first_decay=1.0"),
        ({"old_decay_rate": -0.1}, "old_decay_rate=-0.1"),
        ({"old_max_decay": 1.0}, "old_max_decay=1.0"),
        ({"num_points": 10}, "num_points=10"),
        ({"std": "none"}, "std='none'"),
        ({"advantage_clip": 0.0}, "advantage_clip=0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        CRD(**settings)
