"""What changes during a run beside weights and optimizer, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dgpo.config import Config
from dgpo.training import schedule
from dgpo.training.meter import NoiseAverage


@dataclass
class State:
    """What changes during a run beside weights and optimizer. Plain numbers, kept in every checkpoint."""

    iteration: int = 0  # finished
    step: int = 0  # optimizer steps, with the one that is being taken
    first_step: int = 0  # of the iteration that has not finished
    position: int = 0  # of the prompt sampler
    elapsed: float = 0.0  # seconds
    forwards: int = 0  # of the network, for one image each, in rollouts and updates; a backward counts as two
    evaluated: int = -1  # the iteration after which the last evaluation was
    first_score: float | None = None  # of the first evaluation
    best_score: float | None = None  # of the evaluations so far
    best_alarmed: bool = False
    best_iteration: int = -1
    noise: NoiseAverage = field(default_factory=NoiseAverage)


def checkpoint_due(state: State, config: Config) -> bool:
    """Every so many iterations, after the last one, and where an evaluation was the best so far."""
    last = done(state, config) or state.iteration == state.best_iteration
    return schedule.saves(config, state.iteration, last)


def done(state: State, config: Config) -> bool:
    """Whether the run has had all its iterations, or all its time."""
    return state.iteration >= config.iterations or state.elapsed >= 60 * (config.max_minutes or math.inf)
