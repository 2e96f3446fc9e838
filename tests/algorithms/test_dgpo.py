"""DGPO's loss against hand-computed numbers and autograd of the true objective; its points; its settings."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import SPLITS, first_point, gradient, gradient_in_parts, make_rollout, make_velocities, of_latents, randn

from dgpo.algorithms.base import Algorithm
from dgpo.algorithms.dgpo import DGPO, dgpo_loss, group_weight
from dgpo.core.advantages import group_advantages
from dgpo.core.groups import group_size, group_sum
from dgpo.core.losses import dsm_loss
from dgpo.core.seeds import generator
from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.types import TrainPoint, Velocities


def surrogate(dsm, dsm_ref, advantages, group_index, *more, **named):
    """The terms from what `group_weight` takes."""
    weight = group_weight(dsm, dsm_ref, advantages, group_index, *more, **named)
    return dgpo_loss(dsm, advantages, weight[group_index])


def test_hand_computed():
    dsm, dsm_ref = torch.tensor([1.0, 2.0, 0.5, 0.7]), torch.tensor([1.5, 1.0, 0.5, 0.5])
    advantages, index = torch.tensor([1.0, -1.0, 2.0, -2.0]), torch.tensor([0, 0, 1, 1])
    s0 = 4.0 / 2 * (1.0 * -0.5 + -1.0 * 1.0)  # beta / group_size * sum A (d - d_ref)
    s1 = 4.0 / 2 * (2.0 * 0.0 + -2.0 * 0.2)
    w0, w1 = 1 / (1 + math.exp(-s0)), 1 / (1 + math.exp(-s1))
    terms = surrogate(dsm, dsm_ref, advantages, index, 2, beta=4.0)
    assert terms.tolist() == pytest.approx([w0 * 1.0, w0 * -2.0, w1 * 1.0, w1 * -1.4])


def random_groups(sizes, key=0):
    index = torch.cat([torch.full((n,), g) for g, n in enumerate(sizes)])
    rewards = randn(len(index), key=key)
    advantages = group_advantages(rewards, index, len(sizes), clip=None).double()
    dsm = (1 + 0.1 * randn(len(index), key=key + 1)).requires_grad_()
    return dsm, 1 + 0.1 * randn(len(index), key=key + 2), advantages, index, len(sizes)


def true_losses(dsm, dsm_ref, advantages, index, num_groups, beta):
    """-log sigmoid(-s) of each group, differentiable."""
    s = beta * group_sum(advantages * (dsm - dsm_ref), index, num_groups) / group_size(index, num_groups)
    return -torch.nn.functional.logsigmoid(-s)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [2, 5, 3]])
@pytest.mark.parametrize("beta", [0.5, 10.0, 100.0])
def test_gradient_times_beta_is_that_of_the_true_loss(sizes, beta):
    """A mean over images of the surrogate is a mean over groups of the true loss, weighted by size if sizes differ."""
    groups = random_groups(sizes)
    dsm = groups[0]
    (ours,) = torch.autograd.grad(surrogate(*groups, beta).mean(), dsm)
    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    (true,) = torch.autograd.grad((share * true_losses(*groups, beta)).sum(), dsm)
    torch.testing.assert_close(beta * ours, true, rtol=1e-12, atol=1e-15)


def test_gradcheck_of_the_surrogate_as_the_backward_of_the_true_loss():
    _, dsm_ref, advantages, index, num_groups = random_groups([4, 4])
    v, target, beta = randn(8, 3, key=7), randn(8, 3, key=8), 5.0

    class TrueLossSurrogateGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            ctx.save_for_backward(v)
            return true_losses(dsm_loss(v, target), dsm_ref, advantages, index, num_groups, beta).mean()

        @staticmethod
        def backward(ctx, grad):
            v = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                dsm = dsm_loss(v, target)
                loss = beta * surrogate(dsm, dsm_ref, advantages, index, num_groups, beta).mean()
            return grad * torch.autograd.grad(loss, v)[0]

    assert torch.autograd.gradcheck(TrueLossSurrogateGradient.apply, (v.requires_grad_(),))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(10)), st.integers(0, 1000))
def test_permutation_of_images_changes_nothing(order, key):
    dsm, dsm_ref, advantages, index, num_groups = random_groups([4, 1, 5], key)
    order = torch.tensor(order)
    terms = surrogate(dsm, dsm_ref, advantages, index, num_groups, 10.0)
    permuted = surrogate(dsm[order], dsm_ref[order], advantages[order], index[order], num_groups, 10.0)
    torch.testing.assert_close(permuted, terms[order], rtol=1e-12, atol=1e-15)


def test_a_constant_added_to_a_groups_rewards_changes_nothing():
    dsm, dsm_ref, _, index, num_groups = random_groups([4, 4])
    rewards = randn(8)
    shifted = rewards + torch.tensor([3.0, -2.0])[index]
    terms = [
        surrogate(dsm, dsm_ref, DGPO(std="group").advantages(r, index, num_groups), index, num_groups, 10.0)
        for r in (rewards, shifted)
    ]
    torch.testing.assert_close(terms[0], terms[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("std", ["group", "batch"])
def test_a_group_of_equal_rewards_contributes_nothing(std):
    dsm, dsm_ref, _, index, num_groups = random_groups([4, 4])
    rewards = torch.where(index == 0, torch.tensor(0.1), randn(8, dtype=torch.float32))
    advantages = DGPO(std=std).advantages(rewards, index, num_groups)
    terms = surrogate(dsm, dsm_ref, advantages, index, num_groups, 10.0)
    (grad,) = torch.autograd.grad(terms.sum(), dsm)
    assert (terms[:4] == 0).all()
    assert (grad[:4] == 0).all()
    assert (grad[4:] != 0).all()


def on_two_ranks(function):
    """Run function(rank, all_reduce) on two threads that meet in all_reduce, as processes would."""
    barrier, parts, results, errors = threading.Barrier(2, timeout=20), [None, None], [None, None], []

    def work(rank):
        def all_reduce(x):
            parts[rank] = x
            barrier.wait()
            total = parts[0] + parts[1]
            barrier.wait()
            return total

        try:
            results[rank] = function(rank, all_reduce)
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return results


@pytest.mark.parametrize("counts_given", [True, False])
def test_two_ranks_equal_one(counts_given):
    dsm, dsm_ref, advantages, index, num_groups = random_groups([4, 3, 5])
    whole = surrogate(dsm, dsm_ref, advantages, index, num_groups, 20.0)
    rows = [torch.tensor([0, 5, 2, 7, 11]), torch.tensor([1, 3, 4, 6, 8, 9, 10])]
    sizes = torch.tensor([4, 3, 5]) if counts_given else None

    def one_rank(rank, all_reduce):
        own = rows[rank]
        return surrogate(
            dsm[own], dsm_ref[own], advantages[own], index[own], num_groups, 20.0, all_reduce, group_sizes=sizes
        )

    for own, terms in zip(rows, on_two_ranks(one_rank)):
        torch.testing.assert_close(terms, whole[own], rtol=1e-12, atol=1e-15)


def test_loss_is_the_mean_of_dgpo_loss_plus_the_kl():
    rollout = make_rollout()
    point = first_point(rollout, DGPO())
    v = make_velocities(point)
    loss, metrics = DGPO(clip_range=None, kl_coef=0.3).loss(point, v, rollout)
    dsm, dsm_ref = dsm_loss(v.policy, point.target), dsm_loss(v.ref, point.target)
    arguments = (dsm, dsm_ref, rollout.advantages, rollout.group_index, 3, 100.0)
    kl = (v.policy - v.ref).square().mean()
    torch.testing.assert_close(loss, surrogate(*arguments).mean() + 0.3 * kl, rtol=1e-12, atol=1e-15)
    expected = {
        "loss": loss,
        "dsm": dsm.mean(),
        "dsm_ref": dsm_ref.mean(),
        "kl": kl,
        "group_weight": group_weight(*arguments).mean(),
        "clip_fraction": torch.tensor(0.0),
    }
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        assert value.dtype == torch.float32
        assert value.shape == ()
        assert not value.requires_grad
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-6), name


def test_self_normalized_errors_are_used_throughout():
    """Errors 1, 2 and 4 of two pixels each: d is their square over their size, so themselves."""
    pixels = lambda *errors: torch.tensor([[error, -error] for error in errors], dtype=torch.float64)
    rollout = of_latents([[0.0, 0.0], [0.0, 0.0]], [1.0, -1.0])
    point = TrainPoint(pixels(0, 0), torch.full((2,), 0.5).double(), pixels(0, 0))
    v = Velocities(policy=pixels(1, 2).requires_grad_(), ref=pixels(2, 4), old=pixels(1.008, 2))
    algorithm = DGPO(self_normalized=True, beta=0.1, kl_coef=0.0, clip_range=1e-2)
    loss, metrics = algorithm.loss(point, v, rollout)
    weight = 1 / (1 + math.exp(-0.1 / 2 * ((1 - 2) - (2 - 4))))
    assert loss.item() == pytest.approx(weight * (1 - 2) / 2)
    assert (metrics["dsm"].item(), metrics["dsm_ref"].item()) == (2.5, 10.0), "metrics are not divided"
    assert metrics["clip_fraction"].item() == 0.0, "the good one's d has fallen by .008, its square by .016"
    (grad,) = torch.autograd.grad(loss, v.policy)
    torch.testing.assert_close(grad, weight * pixels(1 / 2, -1 / 2))  # A (v - target) / size, a mean over two images
    squares = DGPO(beta=0.1, kl_coef=0.0, clip_range=1e-2)
    assert squares.loss(point, v, rollout)[1]["clip_fraction"].item() == 0.5
    totals = [each.statistic(point, v, rollout).item() for each in (algorithm, squares)]
    assert totals == [(1 - 2) - (2 - 4), (1 - 4) - (4 - 16)]


def test_with_beta_0_each_group_weighs_half_and_nothing_else_is_asked_for():
    """The limit of a small beta, without d_ref and without sums over groups."""
    rollout = make_rollout()
    point = first_point(rollout, DGPO())
    v = make_velocities(point)
    none, little = (DGPO(beta=beta, kl_coef=0.0, clip_range=None) for beta in (0.0, 1e-12))
    assert (none.needs, none.couples_group) == (frozenset(), False)
    loss, metrics = none.loss(point, v._replace(ref=None, old=None), rollout)
    expected, _ = little.loss(point, v, rollout)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    assert loss == (rollout.advantages * dsm_loss(v.policy, point.target)).mean() / 2
    assert metrics["group_weight"] == 0.5
    assert metrics.keys() == {"loss", "dsm", "group_weight", "clip_fraction"}
    torch.testing.assert_close(
        gradient(none, point, v, rollout), gradient(little, point, v, rollout), rtol=1e-9, atol=1e-15
    )
    assert DGPO(beta=0.0, clip_range=None).needs == {"ref"}, "for the KL"
    assert DGPO(beta=0.0, kl_coef=0.0, reference="old").needs == {"old"}, "for the clip"


def test_where_the_policy_is_the_reference_each_group_weighs_half():
    rollout = make_rollout()
    point = first_point(rollout, DGPO())
    v = make_velocities(point, near=0.0)
    _, metrics = DGPO().loss(point, v, rollout)
    assert metrics["group_weight"] == 0.5
    assert metrics["kl"] == 0
    assert metrics["clip_fraction"] == 0


def test_the_step_lowers_dsm_of_the_good_and_raises_it_of_the_bad():
    rollout = make_rollout()
    point = first_point(rollout, DGPO())
    v = make_velocities(point, near=0.0)
    loss, _ = DGPO(kl_coef=0.0).loss(point, v, rollout)
    (grad,) = torch.autograd.grad(loss, v.policy)
    moved = dsm_loss(v.policy - 1e-3 * grad, point.target) - dsm_loss(v.policy, point.target)
    assert ((moved < 0) == (rollout.advantages > 0)).all()


def test_clipped_images_give_no_gradient_but_count_in_the_group_sum():
    rollout = make_rollout(num_groups=2)
    point = first_point(rollout, DGPO())
    v = make_velocities(point, near=0.05)
    algorithm = DGPO(kl_coef=0.0, clip_range=1e-3)
    loss, metrics = algorithm.loss(point, v, rollout)
    (grad,) = torch.autograd.grad(loss, v.policy, retain_graph=True)
    free_loss, _ = DGPO(kl_coef=0.0, clip_range=None).loss(point, v, rollout)
    (free_grad,) = torch.autograd.grad(free_loss, v.policy)

    ratio = torch.exp(dsm_loss(v.old, point.target) - dsm_loss(v.policy, point.target))
    clipped = torch.where(rollout.advantages > 0, ratio > 1.001, ratio < 0.999)
    assert 0 < clipped.sum() < len(clipped)
    assert metrics["clip_fraction"].item() == pytest.approx(clipped.double().mean().item())
    torch.testing.assert_close(loss, free_loss)
    assert (grad[clipped] == 0).all()
    torch.testing.assert_close(grad[~clipped], free_grad[~clipped], rtol=1e-12, atol=0)


def test_the_kl_is_not_clipped():
    rollout = make_rollout(num_groups=2)
    point = first_point(rollout, DGPO())
    v = make_velocities(point, near=0.05)
    grads = [
        torch.autograd.grad(DGPO(kl_coef=kl, clip_range=1e-3).loss(point, v, rollout)[0], v.policy)[0]
        for kl in (0.0, 0.5)
    ]
    torch.testing.assert_close(grads[1] - grads[0], 0.5 * 2 * (v.policy - v.ref).detach() / v.policy.numel())


def test_the_dynamic_reference_is_old_and_the_kl_stays_with_ref():
    rollout = make_rollout()
    point = first_point(rollout, DGPO())
    v = make_velocities(point)
    _, metrics = DGPO(reference="old").loss(point, v, rollout)
    assert metrics["dsm_ref"].item() == pytest.approx(dsm_loss(v.old, point.target).mean().item())
    assert metrics["kl"].item() == pytest.approx((v.policy - v.ref).square().mean().item())


@pytest.mark.parametrize("parts", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_micro_batches_equal_the_whole(parts, dtype, tolerance):
    rollout = make_rollout(dtype=dtype)
    algorithm = DGPO(clip_range=2e-3)
    point = first_point(rollout, algorithm)
    v = make_velocities(point)
    loss, metrics = algorithm.loss(point, v, rollout)
    assert 0 < metrics["clip_fraction"] < 1
    (grad,) = torch.autograd.grad(loss, v.policy)
    split_grad, split_loss = gradient_in_parts(algorithm, point, v, rollout, parts)
    assert (split_grad - grad).norm() <= tolerance * grad.norm()
    assert abs(split_loss - loss) <= tolerance
    alone = [algorithm.loss(point.rows(p), v.rows(p), rollout.rows(p))[0] * len(p) for p in parts]
    naive_grad = torch.autograd.grad(sum(alone) / 12, v.policy)[0]
    assert (naive_grad - grad).norm() > 1e-3 * grad.norm(), "the statistics pass made no difference here"


def test_a_slice_is_a_whole_when_the_loop_holds_two_ranks():
    rollout = make_rollout()
    algorithm = DGPO()
    point = first_point(rollout, DGPO())
    v = make_velocities(point)
    (grad,) = torch.autograd.grad(algorithm.loss(point, v, rollout)[0], v.policy)
    rows = [torch.tensor([0, 3, 4, 5, 9, 10]), torch.tensor([1, 2, 6, 7, 8, 11])]

    def one_rank(rank, all_reduce):
        own, policy = rows[rank], v.policy.detach()[rows[rank]].requires_grad_()
        mine = next(algorithm.points(rollout.rows(own), generator(0, "points")))
        velocities = Velocities(policy, v.ref[own], v.old[own])
        loss, _ = algorithm.loss(mine, velocities, rollout.rows(own), reduce=all_reduce)
        return torch.autograd.grad(loss, policy)[0] / 2  # ranks are averaged

    for own, own_grad in zip(rows, on_two_ranks(one_rank)):
        torch.testing.assert_close(own_grad, grad[own], rtol=1e-12, atol=1e-16)


def noise_of(point, rollout):
    return point.target + rollout.x0


def test_grid_draws_are_shared_distinct_and_early():
    rollout = make_rollout()
    draws = [point.t for point in DGPO(num_points=4, trunc_steps=4).points(rollout, generator(0, "points"))]
    assert all(len(set(t.tolist())) == 1 for t in draws)
    values = {t[0].item() for t in draws}
    assert len(values) == 4
    assert values <= set(rollout.sigmas[:5].tolist())


@pytest.mark.parametrize("t_sampling", ["uniform", "logit_normal", "stratified", "linear"])
def test_other_draws_stay_above_t_min(t_sampling):
    rollout = make_rollout()
    algorithm = DGPO(t_sampling=t_sampling, t_min=0.7, t_max=0.9, num_points=16)
    draws = torch.stack([point.t[0] for point in algorithm.points(rollout, generator(0, "points"))])
    assert ((draws >= 0.7) & (draws <= 0.9)).all()
    assert len(draws.unique()) == 16


@pytest.mark.parametrize("t_sampling", ["grid", "uniform", "logit_normal", "stratified", "linear"])
def test_groups_may_have_their_own_t(t_sampling):
    rollout = make_rollout()
    for point in DGPO(shared_t=False, t_sampling=t_sampling, num_points=2).points(rollout, generator(1, "points")):
        by_group = point.t.reshape(3, 4)
        assert (by_group == by_group[:, :1]).all()
        assert len(by_group[:, 0].unique()) > 1


def test_noise_is_shared_by_a_group_and_by_nothing_else():
    rollout = make_rollout()
    drawn = torch.stack([noise_of(p, rollout) for p in DGPO().points(rollout, generator(0, "points"))])
    drawn = drawn.reshape(4, 3, 4, -1)  # (points, groups, members, latent)
    torch.testing.assert_close(drawn, drawn[:, :, :1].expand_as(drawn))
    assert len(drawn[:, :, 0, 0].unique()) == 12
    assert drawn.std().item() == pytest.approx(1.0, abs=0.15)


def test_noise_may_be_each_images_own():
    rollout = make_rollout()
    points = DGPO(shared_noise=False).points(rollout, generator(0, "points"))
    drawn = torch.stack([noise_of(p, rollout) for p in points])
    assert len(drawn[:, :, 0, 0, 0].unique()) == 48


def test_a_rollout_too_short_for_the_grid_says_so():
    with pytest.raises(UserError, match="trunc_steps=6"):
        first_point(make_rollout(sigmas=flow_sigmas(5)), DGPO())


def test_the_defaults_are_the_papers():
    algorithm: Algorithm = DGPO()
    assert algorithm.sampler(0, 10, generator(0, "sampler")) is None
    assert algorithm.couples_group
    assert algorithm.ref_guidance_scale == 1.0
    assert [algorithm.rollout_weights(i) for i in (0, 199, 200)] == ["policy", "policy", "old"]
    assert [algorithm.old_decay(step) for step in (0, 100, 1000)] == [0.0, 0.1, 0.3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0"),
        ({"clip_range": 0.0}, "clip_range=0.0"),
        ({"reference": "frozen"}, "reference='frozen'.*ref, old"),
        ({"ref_guidance_scale": 0.5}, "ref_guidance_scale=0.5"),
        ({"num_points": 0}, "num_points=0"),
        ({"num_points": 8}, "num_points=8"),
        ({"trunc_steps": -1}, "trunc_steps=-1"),
        ({"t_sampling": "normal"}, "t_sampling='normal'"),
        ({"t_min": 1.0}, "t_min=1.0"),
        ({"t_max": 1.1}, "t_max=1.1"),
        ({"std": "none"}, "std='none'"),
        ({"advantage_clip": 0.0}, "advantage_clip=0.0"),
        ({"sampling_switch": -1}, "sampling_switch=-1"),
        ({"old_decay_rate": -0.1}, "old_decay_rate=-0.1"),
        ({"old_max_decay": 1.0}, "old_max_decay=1.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        DGPO(**settings)
