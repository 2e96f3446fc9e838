"""The grids of flow schedulers: the noise levels at which a stock pipeline calls its network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dgpo.errors import UserError


def scheduler_grid(pipeline: Any, num_steps: int, **settings: Any) -> Tensor:
    """The sigmas of a flow-matching pipeline's scheduler, which is left as it was."""
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(num_steps, **settings)
    return scheduler.sigmas


def scheduler_shift(config: Mapping[str, Any], latent_shape: tuple[int, int, int], max_shift: float = 1.15) -> float:
    """The shift of the scheduler's grid at this size: fixed, or following the number of image tokens.

    max_shift: what the stock pipeline takes where its scheduler names none. UserError for a scheduler of no flow.
    """
    return shift_of(config, dynamic_mu(config, latent_shape, max_shift) if config.get("use_dynamic_shifting") else 0.0)


def shift_of(config: Mapping[str, Any], mu: float) -> float:
    """The same where the stock pipeline has its own rule for `mu`, which only a scheduler that shifts by size reads."""
    if config.get("invert_sigmas"):
        raise UserError("the pipeline's scheduler has invert_sigmas=true: such a network counts t from noise to data")
    if config.get("use_dynamic_shifting"):
        return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    shift = config.get("shift", config.get("flow_shift"))
    if shift is None or config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise UserError(
            f"the pipeline's scheduler, a {config.get('_class_name')}, is for no flow: it has no shift or flow_shift, "
            "or a prediction_type other than flow_prediction. Save the pipeline with the scheduler that the network "
            "was trained for, such as FlowMatchEulerDiscreteScheduler"
        )
    return float(shift)


def shifted_grid(pipeline: Any, num_steps: int, latent_shape: tuple[int, int, int]) -> Tensor:
    """(num_steps + 1,) the grid of a stock call with this scheduler's own line of shifts."""
    return even_grid(pipeline, num_steps, dynamic_mu(pipeline.scheduler.config, latent_shape))


def even_grid(pipeline: Any, num_steps: int, mu: float) -> Tensor:
    """(num_steps + 1,) what the stock call tells its scheduler: even steps from 1, and the shift of this size."""
    even = [1 - step / num_steps for step in range(num_steps)]
    return scheduler_grid(pipeline, num_steps, sigmas=even, mu=mu)


def dynamic_mu(config: Mapping[str, Any], latent_shape: tuple[int, int, int], max_shift: float = 1.15) -> float:
    """The line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift), at h w / 4 tokens."""
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return low + (high - low) * (latent_shape[1] * latent_shape[2] / 4 - few) / (many - few)


def to_terminal(grid: Tensor, terminal: float | None) -> Tensor:
    """A grid (S + 1,), trailing 0, stretched so that its last level before 0 is `terminal`; None leaves it."""
    if terminal and len(grid) > 2:  # a single level stays where it is, near 1
        grid[:-1] = 1 - (1 - grid[:-1]) * (1 - terminal) / (1 - grid[-2])
    return grid
