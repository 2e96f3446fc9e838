"""Seconds of an iteration on a named GPU, from the counts of `runs.py` and its data sheet. Not measured: an estimate.

Matrix products are taken to reach EFFICIENCY of the peak of the precision that each is computed in: the VAE's are those
of vae_dtype, those of a network that trains whole are bf16 though its weights are fp32. Everything else is taken to be
as fast as memory is read and written at BANDWIDTH_SHARE of the data sheet's rate, as eager PyTorch does it; a phase
takes the longer of the two. Rewards, evaluations, checkpoints, encoding prompts and talk between processes are not in
it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from dgpo.config import Config
from dgpo.plan.gpus import GPU
from dgpo.plan.meta import Count
from dgpo.plan.runs import Runs
from dgpo.training.geometry import Geometry
from dgpo.training.schedule import guided_rows, trained_images

EFFICIENCY = 0.4
BANDWIDTH_SHARE = 0.8


class Work(NamedTuple):
    """What one process does in a phase of an iteration."""

    flops: float
    moved: float  # bytes read and written
    fp32_flops: float = 0.0  # of the flops, those of products in fp32


def work(config: Config, g: Geometry, runs: Runs) -> dict[str, Work]:
    """By phase, long after the start. A call of fewer images is taken to cost as much less; groups that are drawn again
    are not in it, nor that they come to one process more than to another."""
    scale, algorithm = config.sampling.guidance_scale, config.algorithm
    fixed = guided_rows(algorithm.policy_guidance(scale)) * (g.old_updates / g.updates + g.splits)
    fixed += guided_rows(algorithm.ref_guidance(scale)) if "ref" in algorithm.needs else 0
    drawn = g.drawn / g.sampling_batch * (g.solver_calls > 0)
    even = math.ceil(config.num_groups * trained_images(config) / g.processes)
    images = even if config.redraw_groups else g.trained
    trained = images * g.points * (1 if config.split_updates else g.updates)
    return {
        "sampling": _times(runs.sampling, drawn * g.solver_calls),
        "decoding": _times(runs.decoding, drawn),
        "frozen forwards": _times(
            runs.frozen or runs.sampling, trained * fixed / (g.sampling_batch * guided_rows(scale))
        ),
        "forwards and backwards": _times(runs.update, trained / g.micro_batch),
    }


def seconds(work: Work, gpu: GPU) -> tuple[float, float]:
    """Bound by arithmetic, bound by memory."""
    arithmetic = (work.flops - work.fp32_flops) / gpu.peak("bf16") + work.fp32_flops / gpu.peak("fp32")
    return arithmetic / EFFICIENCY, work.moved / (BANDWIDTH_SHARE * gpu.bandwidth * 1e9)


def _times(count: Count, factor: float) -> Work:
    return Work(count.flops * factor, count.moved * factor, count.fp32_flops * factor)
