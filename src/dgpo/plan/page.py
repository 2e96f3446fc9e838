"""A plan as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from dgpo.config import Config
from dgpo.plan.checks import Check
from dgpo.plan.estimates import Estimate
from dgpo.plan.fitting import GIB
from dgpo.plan.gpus import GPU, GPUS
from dgpo.plan.speed import BANDWIDTH_SHARE, EFFICIENCY, seconds
from dgpo.training.geometry import geometry, network_forwards
from dgpo.training.schedule import evaluates, saves
from dgpo.utils.devices import described


def lines(estimated: Estimate, checks: list[Check], gpu: GPU | None) -> Iterator[str]:
    """The whole plan."""
    yield from _geometry(estimated)
    if estimated.unknown:
        yield "  what is missing below could not be estimated: see the checks"
    if estimated.parts:
        yield "parameters"
        yield from _parameters(estimated)
    if estimated.held:
        yield "memory of each process, GiB, without what rewards take"
        yield from _memory(estimated)
    if estimated.work and not gpu:
        where = "the CPU" if estimated.on_cpu else "this GPU"
        yield f"time: not foretold for {where}; --gpu NAME estimates it for one of {', '.join(g.name for g in GPUS)}"
        yield "  a run says how long it will take after its first iterations"
    if gpu and estimated.work:
        yield f"time of an iteration on {gpu.name}, estimated"
        yield from _time(estimated, gpu)
    yield "checks"
    yield from (f"  {'warning' if one.doubt else 'ok' if one.ok else 'problem':<9}{one.text}" for one in checks)


def _geometry(estimated: Estimate) -> Iterator[str]:
    c, g = estimated.config, estimated.geometry
    images = c.num_groups * c.group_size
    several = "" if g.processes == 1 else f" on {g.processes} processes, {g.drawn} images each"
    again = f", groups of equal rewards up to {c.redraw_groups} times again" if c.redraw_groups else ""
    fewer = "up to " if c.drop_equal_groups or c.algorithm.skips_zero else ""
    limit = "" if c.max_minutes is None else f" or {c.max_minutes:g} minutes"
    precision = described(c.dtype, torch.device("cpu" if estimated.on_cpu else "cuda"))
    yield f"{c.called}: {type(c.algorithm).__name__} on {c.model}, {c.finetune}, {precision}"
    yield (
        f"  an iteration: {c.num_groups} groups of {c.group_size} = {images} images{several}{again}, "
        f"{network_forwards(c, g.processes):,} network forwards, a backward counted as two"
    )
    yield (
        f"  {fewer}{c.updates_per_rollout} optimizer step(s), each of {g.points} points x {g.micro_batches} "
        f"micro-batch(es) of up to {g.micro_batch} images; sampled {g.sampling_batch} at a time{_size(c)}"
    )
    drawn = f"{c.iterations * images:,}" + (f" to {c.iterations * images * (1 + c.redraw_groups):,}" if again else "")
    yield from _split(estimated)
    yield (
        f"  {c.iterations:,} iterations{limit}: {fewer}{c.iterations * c.updates_per_rollout:,} optimizer steps, "
        f"images drawn {drawn if g.solver_calls else 'none, learned from a dataset'}"
    )
    measured = f"every {c.noise_scale_every} optimizer step(s)" if g.group_batch else "never"
    evaluations, checkpoints = (
        sum(due(c, iteration, iteration == c.iterations) for iteration in range(c.iterations + 1))
        for due in (evaluates, saves)
    )
    best = " and one after each best evaluation" if evaluations and checkpoints else ""
    yield (
        f"  {evaluations:,} evaluations of {_images(c)} images a prompt, {checkpoints:,} checkpoints"
        f"{best}; the gradient noise scale is measured {measured}"
    )


def _size(config: Config) -> str:
    side = config.sampling.resolution
    return "" if side is None else f", at {side} pixels a side; evaluations and samples are at the run's own resolution"


def _split(estimated: Estimate) -> Iterator[str]:
    """What it costs that a micro-batch holds less than a group."""
    c, g = estimated.config, estimated.geometry
    whole = replace(c, micro_batch_size=g.group)
    if not g.splits or g.micro_batch % g.group == 0 or geometry(whole, g.processes).splits:
        return
    share = 1 - network_forwards(whole, g.processes) / network_forwards(c, g.processes)
    yield (
        f"  a group of {g.group} is spread over micro-batches, so that its totals take one more forward of each image "
        f"at each point; micro_batch_size={g.group}, or a multiple of it, would save {share:.0%} of all forwards, if "
        "it fits into memory"
    )


def _images(config: Config) -> str:
    """6, or 6 (2 in other)."""
    own = ", ".join(f"{images} in {name}" for name, images in config.eval_images.items())
    return f"{config.eval_images_per_prompt}" + (f" ({own})" if own else "")


def _parameters(estimated: Estimate) -> Iterator[str]:
    for part in estimated.parts:
        yield f"  {part.name.replace('_', ' '):<28}{part.parameters:>18,}  {part.kind}"
    yield f"  {'trained':<28}{estimated.trained:>18,}  {estimated.config.finetune}"


def _memory(estimated: Estimate) -> Iterator[str]:
    assert estimated.held is not None
    if estimated.offload:
        yield f"  {estimated.offload}"
    for name, size in estimated.held.parts.items():
        yield f"  {name:<28}{size / GIB:>18.3f}"
    on_host = 0 if estimated.on_cpu else estimated.held.on_host
    yield f"  {'held, on host or GPU' if on_host else 'held throughout':<28}{estimated.held.total / GIB:>18.3f}"
    if on_host:
        yield f"  {'of it in host memory':<28}{on_host / GIB:>18.3f}"
    if estimated.held.copied:
        yield f"  {'in host memory, for saving':<28}{estimated.held.copied / GIB:>18.3f}"
    if estimated.config.free_text_encoders:
        yield f"  {'text encoders, at first':<28}{estimated.held.encoders / GIB:>18.3f}"
    for name, size in estimated.phases.items():
        yield f"  {f'all while {name}':<28}{size / GIB:>18.3f}" + ("  the peak" if name == estimated.largest else "")
    if not estimated.phases:
        yield f"  {'activations':<28}{'not estimated':>18}"


def _time(estimated: Estimate, gpu: GPU) -> Iterator[str]:
    total = 0.0
    for name, work in estimated.work.items():
        compute, traffic = seconds(work, gpu)
        total += max(compute, traffic)
        if work.flops:
            yield (
                f"  {name:<28}{max(compute, traffic):>16.2f} s  {work.flops / 1e12:,.1f} TFLOP take {compute:.2f} s, "
                f"{work.moved / 1e9:,.0f} GB {traffic:.2f} s"
            )
    yield (
        f"  {'in all':<28}{total:>16.2f} s  at {EFFICIENCY:.0%} of {gpu.bf16:g} TFLOP/s for bf16 and {gpu.tf32:g} for "
        f"fp32 (TF32), and {BANDWIDTH_SHARE:.0%} of {gpu.bandwidth:,} GB/s; rewards and evaluations come on top"
    )
    yield f"  {f'{estimated.config.iterations:,} iterations':<28}{total * estimated.config.iterations / 3600:>16.2f} h"
