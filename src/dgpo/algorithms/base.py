"""What the training loop asks of an algorithm: where to train, which weights to evaluate there, and the loss.

An algorithm is a frozen dataclass of its paper's constants, one file per paper. It sees tensors, never a model, and a
collective only as the argument `reduce`. The loop calls `advantages` once per rollout, then, for every TrainPoint of
`points`, `statistic` on each micro-batch if `couples_group` and a group is split, and `loss` on each micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from dgpo.core.groups import Reduce, identity
from dgpo.errors import UserError
from dgpo.types import Rollout, TrainPoint, Velocities


class Algorithm(Protocol):
    """One way to turn a scored rollout into a gradient."""

    @property
    def needs(self) -> frozenset[str]:
        """The weight sets, of "ref" and "old", that are evaluated at a TrainPoint beside the policy."""
        ...

    @property
    def ref_guidance_scale(self) -> float:
        """Classifier-free guidance of "ref" at a TrainPoint; 1.0 is none. The policy is trained without."""
        ...

    @property
    def sampler(self) -> Literal["ode", "sde"]:
        """What the rollout must be sampled by; "sde" also keeps the Trajectory."""
        ...

    @property
    def couples_group(self) -> bool:
        """Whether the loss of an image depends on a sum over its whole group."""
        ...

    def rollout_weights(self, iteration: int) -> Literal["policy", "old"]:
        """The weight set that samples the rollout of this iteration, counted from 0."""
        ...

    def old_decay(self, step: int) -> float:
        """Decay of `old` after an optimizer step, counted from 0."""
        ...

    def advantages(self, rewards: Tensor, group_index: Tensor, num_groups: int) -> Tensor:
        """rewards: (B,) of the whole batch; group_index: (B,) int64; returns (B,)."""
        ...

    def points(self, rollout: Rollout, generator: torch.Generator) -> Iterator[TrainPoint]:
        """Where to train. An image's t and noise do not depend on which other images the rollout holds."""
        ...

    def statistic(self, point: TrainPoint, velocities: Velocities, rollout: Rollout) -> Tensor:
        """These rows' share of the sum over each group, without gradient; returns (num_groups,)."""
        ...

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
