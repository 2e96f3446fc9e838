"""Seconds of an iteration on a named GPU, from the counts of `runs.py` and its data sheet. Not measured: an estimate.

Matrix products are taken to reach EFFICIENCY of the peak, everything else to be as fast as memory is read and written
at BANDWIDTH_SHARE of the data sheet's rate, as eager PyTorch does it; a phase takes the longer of the two. Rewards,
evaluations, checkpoints, encoding prompts and talk between processes are not in it.
"""

from __future__ import annotations

from typing import NamedTuple

from dgpo.config import Config
from dgpo.plan.gpus import GPU
from dgpo.plan.meta import Count
from dgpo.plan.runs import Geometry, Runs

EFFICIENCY = 0.4
BANDWIDTH_SHARE = 0.8


class Work(NamedTuple):
    """What one process does in a phase of an iteration."""

    flops: float
    moved: float  # bytes read and written


def work(config: Config, g: Geometry, runs: Runs) -> dict[str, Work]:
    """By phase. A call of fewer images is taken to cost as much less."""
    scale, algorithm = config.sampling.guidance_scale, config.algorithm
    policy = _rows(algorithm.policy_guidance(scale))
    fixed = policy * (("old" in algorithm.needs) + g.splits)
    fixed += _rows(algorithm.ref_guidance(scale)) if "ref" in algorithm.needs else 0
    drawn = g.images / g.sampling_batch * (g.solver_calls > 0)
    trained = g.trained * g.points * g.passes
    return {
        "sampling": _times(runs.sampling, drawn * g.solver_calls),
        "decoding": _times(runs.decoding, drawn),
        "frozen forwards": _times(runs.sampling, trained * fixed / (g.sampling_batch * _rows(scale))),
        "forwards and backwards": _times(runs.update, trained / g.micro_batch),
    }


def seconds(work: Work, gpu: GPU, dtype: str) -> tuple[float, float]:
    """Bound by arithmetic, bound by memory."""
    return work.flops / (EFFICIENCY * gpu.peak(dtype)), work.moved / (BANDWIDTH_SHARE * gpu.bandwidth * 1e9)


def _rows(guidance_scale: float) -> int:
    """Rows that the network sees for an image."""
    return 1 if guidance_scale == 1.0 else 2


def _times(count: Count, factor: float) -> Work:
    return Work(count.flops * factor, count.moved * factor)
