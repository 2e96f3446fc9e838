"""What every built-in algorithm is held to. A new one in the registry is covered by itself, with its defaults."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made import LATENT, SPLITS, assert_gradcheck, assert_parts_equal_the_whole, make_rollout, make_velocities, randn
from torch import Tensor

from dgpo.algorithms.base import Algorithm
from dgpo.algorithms.contract import problems
from dgpo.algorithms.registry import BUILT_IN, algorithm_class
from dgpo.core.seeds import generator
from dgpo.core.solvers import flow_sigmas, sde_solve
from dgpo.types import Rollout, TrainPoint, Trajectory, Velocities

STEPS = 10
SETTINGS: dict[str, list[dict[str, Any]]] = {  # beside the defaults
    "dgpo": [
        {"clip_range": 2e-3, "shared_t": False},
        {"shared_noise": False},
        {"shared_t": False, "shared_noise": False},
        {"reference": "old", "std": "group"},
        {"self_normalized": True},
        {"beta": 0.0, "shared_t": False},
    ],
    "flow_grpo": [
        {"clip_range": 0.2},
        {"window": 3, "window_shift_every": 1},
        {"constant_noise": True},
        {"sde_type": "cps"},
        {"kl": "transition"},
    ],
    "awm": [{"kl_coef": 0.3}],
    "diffusion_nft": [{"mix": 0.1, "kl_coef": 0.3}],
    "diffusion_dpo": [{"beta": 20.0}],
    "ram": [{"sampler_weights": "policy"}, {"reward_scale": 1.0}],
    "crd": [{"beta": 3.0}, {"self_normalized": False, "adaptive_kl": False}, {"shared_t": True, "shared_noise": True}],
}
STOPS_GRADIENTS = {"dgpo", "diffusion_nft", "ram", "crd"}
"""Their losses are surrogates with weights that carry no gradient; their own files differentiate the true objective."""

NEEDS: list[tuple[str, dict[str, Any], set[str]]] = [
    ("dgpo", {}, {"ref", "old"}),
    ("dgpo", {"clip_range": None}, {"ref"}),
    ("dgpo", {"kl_coef": 0.0}, {"ref", "old"}),
    ("dgpo", {"kl_coef": 0.0, "clip_range": None, "reference": "old"}, {"old"}),
    ("dgpo", {"kl_coef": 0.0, "reference": "old"}, {"old"}),
    ("dgpo", {"reference": "old", "clip_range": None}, {"ref", "old"}),
    ("dgpo", {"beta": 0.0, "clip_range": None}, {"ref"}),
    ("dgpo", {"beta": 0.0, "kl_coef": 0.0}, {"old"}),
    ("dgpo", {"beta": 0.0, "kl_coef": 0.0, "reference": "old", "clip_range": None}, set()),
    ("dgpo", {"ref_guidance_scale": 4.5, "clip_range": None}, {"ref"}),
    ("flow_grpo", {"kl_coef": 0.04}, {"ref"}),
    ("flow_grpo", {"kl_coef": 0.0}, set()),
    ("awm", {"kl_coef": 0.1}, {"ref", "old"}),
    ("awm", {"kl_coef": 0.0}, {"old"}),
    ("diffusion_nft", {"kl_coef": 0.1}, {"ref", "old"}),
    ("diffusion_nft", {"kl_coef": 0.0}, {"old"}),
    ("diffusion_dpo", {"beta": 20.0}, {"ref"}),
    ("ram", {"reward_scale": 1.0}, {"ref", "old"}),
    ("ram", {"sampler_weights": "policy"}, {"ref"}),
    ("crd", {"kl_coef": 0.1}, {"ref", "old"}),
    ("crd", {"kl_coef": 0.0}, {"old"}),
]
CASES = [(name, settings) for name in BUILT_IN for settings in [{}, *SETTINGS.get(name, [])]]


def each(cases: list[Any], names: str) -> Callable[[Any], Any]:
    """Parametrize with readable names."""
    ids = ["-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())]) for case in cases]
    return pytest.mark.parametrize(names, cases, ids=ids)


every = each(CASES, "name, settings")


def make(name: str, settings: dict[str, Any]) -> Any:
    return algorithm_class(name)(**settings)


def sampled_velocity(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * (1 + t.reshape(-1, 1, 1, 1))


def rollout_of(algorithm: Algorithm) -> Rollout:
    """12 images that all train, with the path to them if the algorithm samples one, and its own advantages."""
    size = algorithm.trained_images(4)
    rollout = make_rollout(12 // size, size)
    advantages = algorithm.advantages(rollout.rewards.float(), rollout.group_index, rollout.num_groups)
    assert (advantages != 0).all()
    rollout = rollout._replace(advantages=advantages.double())
    sde = algorithm.sampler(0, STEPS, generator(0, "sampler"))
    if sde is None:
        return rollout
    streams, sigmas = [generator(0, "path", row) for row in range(12)], flow_sigmas(STEPS).double()
    x0, latents, log_probs = sde_solve(
        sampled_velocity, randn(12, *LATENT, key=6), sigmas, streams, sde.noise_level, sde.window, sde.noise
    )
    return rollout._replace(sigmas=sigmas, x0=x0, trajectory=Trajectory(latents, log_probs, sde))


def points_of(algorithm: Algorithm, rollout: Rollout, key: int = 0) -> list[TrainPoint]:
    return list(algorithm.points(rollout, generator(key, "points")))


def velocities_at(point: TrainPoint) -> Any:
    """Of a policy that has moved since it sampled, of a reference and of an `old` near it. Any: none of them is None.

    A stochastic step is likely only under velocities near the one that made it.
    """
    if point.t_next is None:
        return make_velocities(point, near=0.1)
    own = sampled_velocity(point.x_t, point.t)
    policy, ref, old = (own + 0.1 * randn(*own.shape, key=key) for key in (7, 8, 9))
    return Velocities(policy.requires_grad_(), ref, old)


def no_reduce(total: Tensor) -> Tensor:
    raise AssertionError("an algorithm that couples no group sums over none")


@every
def test_it_keeps_the_protocol_and_its_settings_are_frozen(name: str, settings: dict[str, Any]) -> None:
    algorithm = make(name, settings)
    assert problems(algorithm) == []
    assert dataclasses.is_dataclass(algorithm)
    for field in dataclasses.fields(algorithm):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(algorithm, field.name, getattr(algorithm, field.name))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_setting_is_documented_where_help_reads_it(name: str) -> None:
    kind = algorithm_class(name)
    owners = [owner for owner in kind.__mro__ if dataclasses.is_dataclass(owner)]
    for field in dataclasses.fields(kind):
        owner = next(owner for owner in owners if field.name in vars(owner).get("__annotations__", {}))
        source = inspect.getsource(owner)
        line = source.index(f"    {field.name}: ")
        assert source[line:].split("\n")[1].strip().startswith('"""'), field.name


@every
def test_what_the_loop_is_told_is_consistent(name: str, settings: dict[str, Any]) -> None:
    algorithm = make(name, settings)
    algorithm.check_sampling(STEPS)
    samplers = {algorithm.rollout_weights(iteration) for iteration in (0, 1, 199, 200, 1000)}
    assert samplers <= {"policy", "old"}
    if algorithm.old_follows == "rollout":
        assert "old" in algorithm.needs | samplers, "nobody would see which `old` it is"
    assert all(0 <= algorithm.old_decay(step) < 1 for step in (0, 1, 100, 1000, 10**6))
    assert algorithm.old_decay(0) == {"crd": 0.25}.get(name, 0.0), "`old` starts as a copy, but for one paper"
    ref_scale = getattr(algorithm, "ref_guidance_scale", 1.0)
    for guidance, own in ((algorithm.policy_guidance, 1.0), (algorithm.ref_guidance, ref_scale)):
        assert guidance(1.0) == own
        assert guidance(4.5) in (own, 4.5)
    assert 2 <= algorithm.trained_images(8) <= 8
    assert algorithm.skips_zero or algorithm.trained_images(8) == 8
    for iteration in range(5):
        sde = algorithm.sampler(iteration, STEPS, generator(0, "sampler", iteration))
        if sde is not None:
            assert len(sde.window) == algorithm.points_per_update(STEPS)
            assert set(sde.window) <= set(range(STEPS))


@each(NEEDS, "name, settings, needs")
def test_what_is_needed_is_enough_and_nothing_else_is_read(
    name: str, settings: dict[str, Any], needs: set[str]
) -> None:
    algorithm = make(name, settings)
    assert algorithm.needs == needs
    _reads_what_it_needs(algorithm)


@every
def test_needs_says_what_the_loss_reads(name: str, settings: dict[str, Any]) -> None:
    _reads_what_it_needs(make(name, settings))


def _reads_what_it_needs(algorithm: Any) -> None:
    rollout = rollout_of(algorithm)
    point = points_of(algorithm, rollout)[0]
    whole = velocities_at(point)
    only = whole._replace(**dict.fromkeys({"ref", "old"} - algorithm.needs))
    loss, metrics = algorithm.loss(point, only, rollout)
    assert torch.equal(loss, algorithm.loss(point, whole, rollout)[0])
    if hasattr(algorithm, "kl_coef"):
        assert ("kl" in metrics) == ("ref" in algorithm.needs)
    assert ("clip_fraction" in metrics) == hasattr(algorithm, "clip_range")
    for missing in ("policy", *algorithm.needs):
        with pytest.raises(ValueError, match=missing):
            algorithm.loss(point, only._replace(**{missing: None}), rollout)


@every
def test_advantages_compare_the_images_of_a_group(name: str, settings: dict[str, Any]) -> None:
    algorithm, index = make(name, settings), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    rewards = torch.tensor([0.3, 0.9, 0.1, 0.8, 0.5, 0.5, 0.5, -1.0, 2.0, 0.2, 0.1])
    advantages = algorithm.advantages(rewards, index, 4)
    assert advantages.dtype == torch.float32
    assert advantages.shape == rewards.shape
    assert torch.zeros(4).index_add(0, index, advantages).abs().max() < 1e-6
    assert (advantages[index == 1] == 0).all(), "equal rewards say nothing"
    for group in range(4):
        ordered = advantages[index == group][rewards[index == group].argsort()]
        assert (ordered.diff() >= 0).all(), "a better image has no smaller advantage"
        assert (ordered != 0).sum() <= algorithm.trained_images(len(ordered))
    order = torch.randperm(11, generator=generator(0, "order"))
    moved = algorithm.advantages(rewards[order], index[order], 4)
    torch.testing.assert_close(moved, advantages[order], rtol=1e-6, atol=1e-7)


@every
def test_points_are_as_many_as_promised_and_fit_the_rollout(name: str, settings: dict[str, Any]) -> None:
    algorithm = make(name, settings)
    rollout = rollout_of(algorithm)
    before = rollout.x0.clone()
    points = points_of(algorithm, rollout)
    assert len(points) == algorithm.points_per_update(STEPS)
    for point, again in zip(points, points_of(algorithm, rollout)):
        assert point.x_t.shape == point.target.shape == rollout.x0.shape
        assert point.t.shape == (12,)
        assert ((point.t > 0) & (point.t <= 1)).all()
        assert (point.t_next is None) == (point.log_prob is None) == (rollout.trajectory is None)
        assert all(torch.equal(one, other) for one, other in zip(point[:3], again[:3]))
        if rollout.trajectory is None:
            assert point.t.dtype == torch.float32
            t = point.t.reshape(-1, 1, 1, 1)
            torch.testing.assert_close(point.x_t - t * point.target, rollout.x0, rtol=1e-6, atol=1e-6)
    assert torch.equal(rollout.x0, before)


@every
def test_points_do_not_depend_on_which_part_of_the_batch_asks(name: str, settings: dict[str, Any]) -> None:
    algorithm, part = make(name, settings), torch.tensor([10, 1, 4])
    rollout = rollout_of(algorithm)
    whole, own = points_of(algorithm, rollout), points_of(algorithm, rollout.rows(part))
    assert len(own) == len(whole)
    for point, mine in zip(whole, own):
        for value, expected in zip(mine, point.rows(part)):
            assert (value is None) == (expected is None)
            assert value is None or torch.equal(value, expected)
    if rollout.trajectory is None:
        assert not torch.equal(points_of(algorithm, rollout, key=1)[0].target, whole[0].target)


@pytest.mark.parametrize("parts", SPLITS.values(), ids=SPLITS)
@every
def test_micro_batches_equal_the_whole(name: str, settings: dict[str, Any], parts: list[Tensor]) -> None:
    algorithm = make(name, settings)
    rollout = rollout_of(algorithm)
    for point in points_of(algorithm, rollout):
        assert_parts_equal_the_whole(algorithm, point, velocities_at(point), rollout, parts)


@every
def test_only_an_algorithm_that_couples_groups_sums_over_them(name: str, settings: dict[str, Any]) -> None:
    algorithm = make(name, settings)
    rollout = rollout_of(algorithm)
    point = points_of(algorithm, rollout)[0]
    velocities, calls = velocities_at(point), []
    if not algorithm.couples_group:
        algorithm.loss(point, velocities, rollout, no_reduce)
        return
    algorithm.loss(point, velocities, rollout, lambda total: calls.append(total) or total)
    statistic = algorithm.statistic(point, velocities, rollout)
    assert statistic.shape == (rollout.num_groups,)
    assert not statistic.requires_grad
    assert len(calls) == 1, "one sum, for which the statistics pass stands in"
    torch.testing.assert_close(calls[0], statistic)


@every
def test_metrics_are_detached_means_over_rows(name: str, settings: dict[str, Any]) -> None:
    algorithm = make(name, settings)
    rollout = rollout_of(algorithm)
    point = points_of(algorithm, rollout)[0]
    velocities = velocities_at(point)
    loss, metrics = algorithm.loss(point, velocities, rollout)
    assert loss.shape == ()
    assert loss.requires_grad
    assert metrics["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    total = algorithm.statistic(point, velocities, rollout) if algorithm.couples_group else None
    parts = [
        algorithm.loss(point.rows(rows), velocities.rows(rows), rollout.rows(rows), lambda _: total)[1]
        for rows in SPLITS["through groups"]
    ]
    for key, value in metrics.items():
        assert value.dtype == torch.float32
        assert value.shape == ()
        assert not value.requires_grad
        assert value.isfinite()
        mean = sum(part[key].item() * len(rows) for part, rows in zip(parts, SPLITS["through groups"])) / 12
        assert value.item() == pytest.approx(mean, rel=1e-5, abs=1e-6), key


@each([case for case in CASES if case[0] not in STOPS_GRADIENTS], "name, settings")
def test_the_gradient_is_that_of_the_value(name: str, settings: dict[str, Any]) -> None:
    algorithm = make(name, settings)
    rollout = rollout_of(algorithm)
    for point in points_of(algorithm, rollout)[:3]:
        assert_gradcheck(algorithm, point, velocities_at(point), rollout)


@every
def test_the_policy_alone_gets_a_gradient_and_every_input_stays(name: str, settings: dict[str, Any]) -> None:
    algorithm = make(name, settings)
    rollout = rollout_of(algorithm)
    point = points_of(algorithm, rollout)[0]
    velocities = velocities_at(point)
    for other in (velocities.ref, velocities.old):
        other.requires_grad_()
    before = [value.detach().clone() for value in (*velocities, *point[:3], rollout.x0, rollout.advantages)]
    algorithm.loss(point, velocities, rollout)[0].backward()
    assert velocities.policy.grad.flatten(1).norm(dim=1).min() > 0
    after = (*velocities, *point[:3], rollout.x0, rollout.advantages)
    assert all(torch.equal(one, other) for one, other in zip(after, before))
