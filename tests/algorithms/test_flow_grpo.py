"""Flow-GRPO's loss against hand-computed numbers, the policy gradient and torch's KL; its steps; its settings."""

import math
from typing import Any

import pytest
import torch
from made import LATENT, gradient, make_rollout, randn

from dgpo.algorithms import FlowGRPO
from dgpo.algorithms.base import Algorithm
from dgpo.core.seeds import generator
from dgpo.core.solvers import flow_sigmas, sde_moments, sde_solve
from dgpo.errors import UserError
from dgpo.types import Rollout, Sde, TrainPoint, Trajectory, Velocities


def sampled_velocity(x, t):
    return torch.tanh(x) * (1 + t.reshape(-1, 1, 1, 1))


def sampled(algorithm: FlowGRPO) -> Rollout:
    """12 images with the path that leads to them, under `sampled_velocity`."""
    rollout = make_rollout(sigmas=flow_sigmas(10).double())
    sde = algorithm.sampler(0, 10, generator(0, "sampler"))
    streams = [generator(0, "path", row) for row in range(12)]
    noise = randn(12, *LATENT, key=6)
    x0, latents, log_probs = sde_solve(
        sampled_velocity, noise, rollout.sigmas, streams, sde.noise_level, sde.window, sde.noise
    )
    return rollout._replace(x0=x0, trajectory=Trajectory(latents, log_probs, sde))


def third_step(algorithm: FlowGRPO, moved: float = 0.0) -> tuple[Rollout, Any, Any]:
    """A policy that has moved by so much since it sampled, and a reference apart from it."""
    rollout = sampled(algorithm)
    point = list(algorithm.points(rollout, generator(0, "points")))[2]
    own = sampled_velocity(point.x_t, point.t)
    policy = own + moved * randn(*own.shape, key=7)
    return rollout, point, Velocities(policy.requires_grad_(), ref=own + 0.1 * randn(*own.shape, key=8))


def moments(point, v, noise_level=0.7):
    mean, std = sde_moments(point.x_t, v, point.t, point.t_next, noise_level)
    return torch.distributions.Normal(mean, std.expand_as(mean))


def one_step(log_prob: float, sde: Sde) -> tuple[TrainPoint, Rollout, Velocities]:
    """From x = 2 at t = .8 to 1.7 at t = .6, twice, with the advantages 2 and -1; the policy has v = -1, the reference
    -.5. log_prob: under the policy; the ratio to the rollout's is exp(.1) = 1.105."""
    column = lambda *values: torch.tensor(values, dtype=torch.float64).reshape(-1, 1)
    point = TrainPoint(
        x_t=column(2.0, 2.0),
        t=torch.tensor([0.8, 0.8], dtype=torch.float64),
        target=column(1.7, 1.7),
        t_next=torch.tensor([0.6, 0.6], dtype=torch.float64),
        log_prob=torch.tensor([log_prob - 0.1] * 2, dtype=torch.float64),
    )
    trajectory = Trajectory(torch.zeros(2, 2, 1), torch.zeros(2, 1), sde)
    rollout = make_rollout(1, 2)._replace(advantages=torch.tensor([2.0, -1.0]).double(), trajectory=trajectory)
    return point, rollout, Velocities(policy=column(-1.0, -1.0), ref=column(-0.5, -0.5))


@pytest.mark.parametrize(("kl", "variance"), [("authors", 1.96), ("transition", 0.392)])
def test_hand_computed(kl, variance):
    """t = .8, t_next = .6, so s^2 = .49 * .8 / .2 = 1.96 and std^2 = .2 * 1.96 = .392; x = 2, x_next = 1.7.
    mean = 2 (1 - 1.96 * .2 / 1.6) - .2 (1 + 1.96 * .2 / 1.6) v = 1.51 - .249 v."""
    log_prob = -(0.059**2) / 0.784 - 0.5 * math.log(2 * math.pi * 0.392)  # v = -1: the mean is 1.759
    point, rollout, velocities = one_step(log_prob, Sde(0.7, "sde", range(1)))  # the reference's mean is 1.6345
    loss, metrics = FlowGRPO(clip_range=0.05, kl_coef=0.04, kl=kl).loss(point, velocities, rollout)
    divergence = 0.1245**2 / (2 * variance)
    expected = {
        "loss": (-2 * 1.05 + math.exp(0.1)) / 2 + 0.04 * divergence,  # clipped where A is 2, not where it is -1
        "ratio": math.exp(0.1),
        "clip_fraction": 0.5,
        "approx_kl": (math.exp(0.1) - 1) ** 2 / 2,
        "kl": divergence,
    }
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kl", ["authors", "transition"])
def test_hand_computed_with_coefficients_preserving_sampling(kl):
    """t = .8, t_next = .6, x = 2, x_next = 1.7, and a third of a right angle is drawn anew: std = .6 / 2 = .3.
    x0 = 2 - .8 v and eps = 2 + .2 v, so the mean is .4 x0 + .6 sqrt(.75) eps."""
    mean, mean_ref = (0.4 * (2 - 0.8 * v) + 0.6 * math.sqrt(0.75) * (2 + 0.2 * v) for v in (-1.0, -0.5))
    point, rollout, velocities = one_step(-((1.7 - mean) ** 2), Sde(1 / 3, "cps", range(1)))
    algorithm = FlowGRPO(sde_type="cps", noise_level=1 / 3, clip_range=0.05, kl_coef=0.04, kl=kl)
    loss, metrics = algorithm.loss(point, velocities, rollout)
    divergence = (mean - mean_ref) ** 2 / (2 * 0.3**2)
    assert metrics["kl"].item() == pytest.approx(divergence, rel=1e-6), "over the step's own variance, either way"
    assert metrics["ratio"].item() == pytest.approx(math.exp(0.1), rel=1e-6)
    assert loss.item() == pytest.approx((-2 * 1.05 + math.exp(0.1)) / 2 + 0.04 * divergence, rel=1e-9)


def test_at_ratio_one_it_is_the_policy_gradient():
    algorithm = FlowGRPO(kl_coef=0.0)
    rollout, point, v = third_step(algorithm)
    _, metrics = algorithm.loss(point, v, rollout)
    assert metrics["approx_kl"] < 1e-20
    log_prob = moments(point, v.policy).log_prob(point.target).flatten(1).mean(1)
    (expected,) = torch.autograd.grad(-(rollout.advantages * log_prob).mean(), v.policy)
    torch.testing.assert_close(gradient(algorithm, point, v, rollout), expected, rtol=1e-9, atol=1e-14)


def test_the_kl_of_the_transition_is_that_of_the_two_gaussians():
    algorithm = FlowGRPO(kl="transition")
    rollout, point, v = third_step(algorithm, moved=0.1)
    _, metrics = algorithm.loss(point, v, rollout)
    exact = torch.distributions.kl_divergence(moments(point, v.policy), moments(point, v.ref))
    assert metrics["kl"].item() == pytest.approx(exact.mean().item(), rel=1e-6)


@pytest.mark.parametrize("constant", [False, True])
def test_the_authors_kl_leaves_out_the_length_of_the_step(constant):
    """As in train_sd3.py: over the rate of noise, which is .7 sqrt(t / (1 - t)) or .7 itself. By default."""
    algorithm, exact = (FlowGRPO(constant_noise=constant, kl=kl) for kl in ("authors", "transition"))
    assert algorithm == FlowGRPO(constant_noise=constant)
    rollout = sampled(algorithm)
    factors = []
    for point in algorithm.points(rollout, generator(0, "points")):
        own = sampled_velocity(point.x_t, point.t)
        v = Velocities(own.clone().requires_grad_(), ref=own + 0.1 * randn(*own.shape, key=8))
        t, t_next = point.t[0].item(), point.t_next[0].item()
        rate = 0.7 if constant else 0.7 * math.sqrt(t / (1 - (t_next if t > 0.998 else t)))
        noise = "constant" if constant else "sde"
        mean, mean_ref = (sde_moments(point.x_t, u, point.t, point.t_next, 0.7, noise)[0] for u in (v.policy, v.ref))
        kl = algorithm.loss(point, v, rollout)[1]["kl"].item()
        assert kl == pytest.approx(((mean - mean_ref) ** 2).mean().item() / (2 * rate**2), rel=1e-6)
        factors.append(exact.loss(point, v, rollout)[1]["kl"].item() / kl)
        assert factors[-1] == pytest.approx(1 / (t - t_next), rel=1e-5)
    assert (round(min(factors)), round(max(factors))) == (6, 28), "as the documentation says of ten steps"


def test_a_step_that_has_moved_far_enough_has_no_gradient_but_that_of_the_kl():
    plain = FlowGRPO(kl_coef=0.0, clip_range=1e-3)
    rollout, point, v = third_step(plain, moved=0.1)
    ratio = (moments(point, v.policy).log_prob(point.target).flatten(1).mean(1) - point.log_prob).exp()
    clipped = torch.where(rollout.advantages > 0, ratio > 1.001, ratio < 0.999)
    assert 0 < clipped.sum() < 12
    moves = gradient(plain, point, v, rollout).flatten(1).norm(dim=1) > 0
    assert (moves == ~clipped).all()
    held = gradient(FlowGRPO(kl_coef=0.1, clip_range=1e-3), point, v, rollout).flatten(1).norm(dim=1)
    assert held.min() > 0


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, range(9)), ({"timestep_fraction": 0.6}, range(6)), ({"window": 3, "window_shift_every": 1}, range(3))],
)
def test_points_are_the_noisy_steps_of_the_path(settings, steps):
    algorithm = FlowGRPO(**settings)
    rollout = sampled(algorithm)
    path = rollout.trajectory
    assert path is not None
    points = list(algorithm.points(rollout, generator(0, "points")))
    assert len(points) == algorithm.points_per_update(10) == len(steps)
    for step, point in zip(steps, points):
        assert torch.equal(point.x_t, path.latents[:, step])
        assert torch.equal(point.target, path.latents[:, step + 1])
        assert point.t_next is not None
        assert point.log_prob is not None
        assert (point.t == rollout.sigmas[step]).all()
        assert (point.t_next == rollout.sigmas[step + 1]).all()
        assert torch.equal(point.log_prob, path.log_probs[:, step])
        assert (point.log_prob != 0).all(), "Euler's steps have no density"


@pytest.mark.parametrize("settings", [{"constant_noise": True}, {"noise_level": 0.3}, {"sde_type": "cps"}])
def test_training_uses_the_samplers_own_noise(settings):
    """Otherwise the ratio on the first update is not 1."""
    algorithm = FlowGRPO(**settings)
    rollout, point, v = third_step(algorithm)
    assert algorithm.loss(point, v, rollout)[1]["approx_kl"] < 1e-20
    assert FlowGRPO().loss(point, v, rollout)[1]["approx_kl"] < 1e-20, "it is the rollout's, not the settings'"


def windows(algorithm, iterations=300, num_steps=10):
    return [algorithm.sampler(i, num_steps, generator(0, "sampler", i)).window for i in range(iterations)]


def test_without_a_window_all_steps_but_the_last_have_noise():
    assert FlowGRPO(noise_level=0.5, constant_noise=True).sampler(4, 10, generator(0, "a")) == Sde(
        0.5, "constant", range(9)
    )
    assert FlowGRPO(timestep_fraction=1.0).sampler(0, 10, generator(0, "a")).window == range(10)
    assert FlowGRPO(timestep_fraction=0.5).sampler(0, 10, generator(0, "a")).window == range(5)


def test_a_drawn_window_lies_anywhere_in_the_share():
    assert {w.start for w in windows(FlowGRPO(window=3))} == set(range(7))
    assert {len(w) for w in windows(FlowGRPO(window=3))} == {3}
    assert {w.stop for w in windows(FlowGRPO(window=2, window_end=5))} == {2, 3, 4, 5}
    assert set(windows(FlowGRPO(window=2, window_end=2), 20)) == {range(2)}
    assert {w.stop for w in windows(FlowGRPO(window=2, window_end=99))} == set(range(2, 10))


def test_a_sliding_window_moves_from_the_noisiest_step_on_and_begins_anew():
    found = windows(FlowGRPO(window=7, window_shift_every=2), 8)
    assert [w.start for w in found] == [0, 0, 1, 1, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("settings", "num_steps", "message"),
    [
        ({}, 1, r"timestep_fraction=0.99 of sampling.num_inference_steps=1 leaves no step"),
        ({"window": 3}, 3, r"window=3 is longer than the 2 steps it may lie in, of sampling.num_inference_steps=3"),
        ({"window": 4, "timestep_fraction": 0.3}, 10, "window=4 is longer than the 3 steps"),
        ({"sde_type": "cps", "timestep_fraction": 1.0}, 10, "the last step of sde_type=cps has no noise"),
    ],
)
def test_a_sampler_with_too_few_steps_is_refused(settings, num_steps, message):
    with pytest.raises(UserError, match=message):
        FlowGRPO(**settings).check_sampling(num_steps)


def test_steps_that_suffice_are_accepted():
    FlowGRPO().check_sampling(2)
    FlowGRPO(timestep_fraction=1.0).check_sampling(1)
    FlowGRPO(sde_type="cps").check_sampling(2)
    FlowGRPO(sde_type="cps", timestep_fraction=1.0, window=3, window_end=5).check_sampling(10)
    FlowGRPO(window=2, window_end=2).check_sampling(3)


def test_a_deterministic_rollout_is_refused():
    with pytest.raises(ValueError, match="kept no trajectory"):
        next(FlowGRPO().points(make_rollout(), generator(0, "points")))


def test_what_the_loop_is_told():
    algorithm: Algorithm = FlowGRPO()
    assert (algorithm.couples_group, algorithm.skips_zero, algorithm.old_follows) == (False, False, "step")
    assert algorithm.rollout_weights(1000) == "policy"
    assert (algorithm.policy_guidance(4.5), algorithm.ref_guidance(4.5)) == (4.5, 4.5)
    free = FlowGRPO(guided=False)
    assert (free.policy_guidance(4.5), free.ref_guidance(4.5)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_level": 0.0}, "noise_level=0.0 makes the sampler deterministic"),
        ({"sde_type": "ode"}, "sde_type='ode' is not known; use one of sde, cps"),
        ({"sde_type": "cps", "noise_level": 1.2}, "noise_level=1.2 is the share of noise that sde_type=cps draws anew"),
        ({"sde_type": "cps", "constant_noise": True}, "constant_noise=True is a rate of the SDE's noise"),
        ({"clip_range": 0.0}, "clip_range=0.0"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0"),
        ({"kl": "exact"}, "kl='exact' is not known; use one of authors, transition"),
        ({"timestep_fraction": 0.0}, "timestep_fraction=0.0"),
        ({"timestep_fraction": 1.1}, "timestep_fraction=1.1"),
        ({"window": 0}, "window=0"),
        ({"window_shift_every": -1}, "window_shift_every=-1"),
        ({"window": 3, "window_end": 2}, "window_end=2 leaves no room for window=3"),
        ({"window_end": 2}, "window_end=2 bounds a window, and window=None has none"),
        ({"window_shift_every": 25}, "window_shift_every=25 moves a window, and window=None has none"),
        ({"window": 2, "window_shift_every": 25, "window_end": 5}, "window_shift_every=25 moves one; take one of the"),
        ({"std": "none"}, "std='none'"),
        ({"advantage_clip": 0.0}, "advantage_clip=0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        FlowGRPO(**settings)
