"""What the training loop asks of an algorithm: where to train, which weights to evaluate there, and the loss.

An algorithm is a frozen dataclass of its paper's constants, one file per paper. It sees tensors, never a model, and a
collective only as the argument `reduce`. The loop calls `advantages` once per rollout, then, for every TrainPoint of
`points`, `statistic` on each micro-batch if `couples_group` and a group is split, and `loss` on each micro-batch.
A class that derives from `Algorithm` says only where it differs from the plainest one: deterministic rollouts of the
policy, no other weights, no guidance in training, images that do not depend on each other. Any other object with the
same members is an algorithm too; contract.py says what one lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Protocol

from dgpo.core.groups import Reduce, identity
from dgpo.errors import UserError
from dgpo.types import Rollout, Sde, TrainPoint, Velocities
from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor


class Algorithm(Protocol):
    """One way to turn a scored rollout into a gradient."""

    @property
    def needs(self) -> frozenset[str]:
        """The weight sets, of "ref" and "old", that are evaluated at a TrainPoint beside the policy."""
        return frozenset()

    @property
    def couples_group(self) -> bool:
        """Whether the loss of an image depends on a sum over its whole group."""
        return False

    @property
    def skips_zero(self) -> bool:
        """Whether an image of advantage 0 is left out of training: nothing is computed for it."""
        return False

    def trained_images(self, group_size: int) -> int:
        """How many images of a group train at most, where `skips_zero` leaves out those of advantage 0."""
        return group_size

    @property
    def old_follows(self) -> Literal["step", "rollout"]:
        """Whether `old` is updated after every optimizer step, or after the last one of a rollout."""
        return "step"

    def sampler(self, iteration: int, num_steps: int, generator: torch.Generator) -> Sde | None:
        """How the rollout of this iteration is sampled: with noise, which keeps the Trajectory, or (None) without."""
        return None

    def rollout_weights(self, iteration: int) -> Literal["policy", "old"]:
        """The weight set that samples the rollout of this iteration, counted from 0."""
        return "policy"

    def policy_guidance(self, rollout_scale: float) -> float:
        """Classifier-free guidance of the policy and `old` at a TrainPoint, after a rollout with this one."""
        return 1.0

    def ref_guidance(self, rollout_scale: float) -> float:
        """Classifier-free guidance of "ref" at a TrainPoint, after a rollout with this one."""
        return 1.0

    def old_decay(self, step: int) -> float:
        """Decay of `old` after an optimizer step, counted from 0; 0 is a copy of the policy."""
        return 0.0

    def check_sampling(self, num_steps: int) -> None:
        """Raise UserError if the algorithm cannot train on rollouts of this many solver steps."""

    def points_per_update(self, num_steps: int) -> int:
        """How many TrainPoints `points` yields for rollouts of this many solver steps."""
        ...

    def advantages(self, rewards: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
        """rewards: (B,) of the whole batch; group_index: (B,) int64; returns (B,)."""
        ...

    def points(self, rollout: Rollout, generator: torch.Generator) -> Iterator[TrainPoint]:
        """Where to train. An image's t and noise do not depend on which other images the rollout holds."""
        ...

    def statistic(self, point: TrainPoint, velocities: Velocities, rollout: Rollout) -> Tensor:
        """These rows' share of the sum over each group, without gradient; returns (num_groups,)."""
        raise TypeError(f"{type(self).__name__} couples no group")

    def loss(
        self, point: TrainPoint, velocities: Velocities, rollout: Rollout, reduce: Reduce = identity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over these rows and its metrics, 0-dim and detached, each a mean over rows too.

        reduce: completes `statistic`, (num_groups,) -> (num_groups,); the identity where all rows are given.
        """
        ...


def require(ok: bool, message: str) -> None:
    """Refuse a constant: the message says what was given, why it cannot work and what would."""
    if not ok:
        raise UserError(message)


def require_known(algorithm: object, name: str, known: tuple[str, ...]) -> None:
    """Refuse a value of a field that is a choice between names."""
    value = getattr(algorithm, name)
    require(value in known, f"{name}={value!r} is not known; use one of {', '.join(known)}.")


def given(velocities: Velocities, name: Literal["policy", "ref", "old"]) -> Tensor:
    """The velocity of a weight set that must have been evaluated; returns (B, *latent)."""
    velocity = getattr(velocities, name)
    if velocity is None:
        raise ValueError(f"the algorithm reads {name!r}: evaluate the policy and every weight set in `needs`")
    return velocity


def averaged(loss: Tensor, metrics: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What `loss` returns: loss is 0-dim; metrics are (B,) and become their means, with the loss among them."""
    means = {name: metric.detach().float().mean() for name, metric in metrics.items()}
    return loss, {"loss": loss.detach().float()} | means
