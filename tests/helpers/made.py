"""Rollouts, points and velocities of the right shapes, made from seeded noise, for the tests of every algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dgpo.algorithms.base import Algorithm
from dgpo.core.advantages import group_advantages
from dgpo.core.seeds import generator
from dgpo.core.solvers import flow_sigmas
from dgpo.types import Rollout, TrainPoint, Velocities

LATENT = (2, 3, 3)
SPLITS = {  # of 12 images in groups of 4
    "through groups": [torch.arange(0, 5), torch.arange(5, 7), torch.arange(7, 12)],
    "one by one": list(torch.arange(12).split(1)),
    "interleaved": [torch.arange(0, 12, 2), torch.arange(1, 12, 2)],
}


def randn(*shape: int, key: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(key, "test")).to(dtype)


def make_rollout(
    num_groups: int = 3,
    group_size: int = 4,
    dtype: torch.dtype = torch.float64,
    sigmas: Tensor | None = None,
    rewards: Tensor | None = None,
) -> Rollout:
    """A rollout of the right shapes whose pictures were never drawn."""
    size = num_groups * group_size
    group_index = torch.arange(num_groups).repeat_interleave(group_size)
    rewards = randn(size, key=1) if rewards is None else rewards
    return Rollout(
        iteration=0,
        num_groups=num_groups,
        group_sizes=torch.full((num_groups,), group_size),
        prompts=[f"prompt {g}" for g in group_index.tolist()],
        metadata=[{}] * size,
        group_index=group_index,
        image_index=torch.arange(size),
        cond=group_index,
        sigmas=flow_sigmas(10) if sigmas is None else sigmas,
        guidance_scale=1.0,
        x0=randn(size, *LATENT, key=2, dtype=dtype),
        images=torch.zeros(size, 3, 1, 1),
        scores={"reward": rewards},
        rewards=rewards,
        advantages=group_advantages(rewards, group_index, num_groups).to(dtype),
        trained=torch.ones(size, dtype=torch.bool),
    )


def of_latents(x0: list[list[float]], advantages: list[float]) -> Rollout:
    """Images of a few numbers each, with these advantages, two to a group."""
    rollout = make_rollout(num_groups=len(x0) // 2, group_size=2)
    return rollout._replace(x0=torch.tensor(x0).double(), advantages=torch.tensor(advantages).double())


def first_point(rollout: Rollout, algorithm: Algorithm) -> TrainPoint:
    return next(iter(algorithm.points(rollout, generator(0, "points"))))


def make_velocities(point: TrainPoint, *, near: float = 0.02) -> Any:
    """Velocities of a policy close to its reference and to `old`. Any: none of them is None."""
    ref = point.target + randn(*point.target.shape, key=3).to(point.target)
    policy = ref + near * randn(*point.target.shape, key=4).to(ref)
    old = ref + near * randn(*point.target.shape, key=5).to(ref)
    return Velocities(policy=policy.requires_grad_(), ref=ref, old=old)


def gradient(algorithm: Algorithm, point: TrainPoint, velocities: Velocities, rollout: Rollout) -> Tensor:
    """Of the loss of all rows, for the policy's velocity."""
    assert velocities.policy is not None
    return torch.autograd.grad(algorithm.loss(point, velocities, rollout)[0], velocities.policy)[0]


def gradient_in_parts(
    algorithm: Algorithm, point: TrainPoint, velocities: Velocities, rollout: Rollout, parts: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The loop's two passes: sum the statistic over micro-batches, then accumulate the loss of each."""
    assert velocities.policy is not None
    pieces = [(point.rows(part), velocities.rows(part), rollout.rows(part)) for part in parts]
    total = torch.tensor(0.0)
    if algorithm.couples_group:
        total = torch.stack([algorithm.statistic(*piece) for piece in pieces]).sum(0)
    assert not total.requires_grad
    shares = [len(part) / len(rollout.prompts) for part in parts]
    losses = [algorithm.loss(*piece, reduce=lambda _: total)[0] * share for piece, share in zip(pieces, shares)]
    loss = torch.stack(losses).sum()
    return torch.autograd.grad(loss, velocities.policy)[0], loss


def assert_parts_equal_the_whole(
    algorithm: Algorithm, point: TrainPoint, velocities: Velocities, rollout: Rollout, parts: Sequence[Tensor]
) -> None:
    """The micro-batch changes neither loss nor gradient."""
    whole, loss = gradient_in_parts(algorithm, point, velocities, rollout, [torch.arange(len(rollout.prompts))])
    split, split_loss = gradient_in_parts(algorithm, point, velocities, rollout, parts)
    assert whole.flatten(1).norm(dim=1).min() > 0, "every image must teach something here"
    torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(split_loss, loss, rtol=1e-10, atol=1e-12)


def assert_gradcheck(algorithm: Algorithm, point: TrainPoint, velocities: Velocities, rollout: Rollout) -> None:
    """The gradient is that of the loss's value, by finite differences."""

    assert velocities.policy is not None

    def loss(policy: Tensor) -> Tensor:
        return algorithm.loss(point, velocities._replace(policy=policy), rollout)[0]

    assert torch.autograd.gradcheck(loss, (velocities.policy,))
