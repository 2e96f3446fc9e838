"""Whether a run fits into a device, and what would make it fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import torch

from dgpo.config import Config
from dgpo.errors import UserError
from dgpo.plan.estimates import Estimate, estimate
from dgpo.plan.gpus import GPU

GIB = 2**30
SPARE = 0.05
"""Share of the peak that CUDA's allocator is taken to lose to gaps."""
OVERHEAD = GIB
"""Bytes that the CUDA context and libraries are taken to need."""


def needs(estimated: Estimate) -> int:
    """Bytes that a device must have, of an estimate with a peak."""
    peak = estimated.peak or 0
    return peak if estimated.on_cpu else int(peak * (1 + SPARE)) + OVERHEAD


def room(gpu: GPU | None, on_cpu: bool) -> tuple[int, str]:
    """Bytes of the device, and whose they are."""
    if gpu is not None:
        return gpu.memory * GIB, gpu.name
    if on_cpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine"
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    raise UserError("this machine has no GPU to compare with; name one with --gpu")


def chosen_offload(estimated: Estimate, available: int, where: str) -> tuple[Literal["none", "parts"], str]:
    """What offload=auto is, and why. estimated: with offload=none, on a GPU; available: its bytes; where: whose."""
    if estimated.config.shard == "full":
        return "none", "for with shard=full each process keeps its share of the network on its GPU"
    if estimated.peak is None:
        return "parts", f"which fits wherever none does: what none takes is not known ({estimated.unknown})"
    fits = needs(estimated) <= available
    needed = f"{needs(estimated) / GIB:.1f} GiB, of {where}'s {available / GIB:.1f} GiB"
    if fits:
        return "none", f"for all parts at once take {needed}"
    return "parts", f"for all parts at once would take {needed}"


def advice(estimated: Estimate, available: int) -> str:
    """Settings that make it fit, those that change the run least first, each only where it saves a hundredth."""
    best, taken, tried = estimated, {}, set()
    while needs(best) > available:
        saving = next(
            (
                s
                for s in _savings(best.config, best.geometry.processes)
                if s.flag not in tried and best.largest in s.phases
            ),
            None,
        )
        if saving is None:
            settings = " ".join(taken.values()) or "every saving"
            return f"Even with {settings} it takes {needs(best) / GIB:.1f} GiB: take a larger GPU"
        tried.add(saving.flag)
        other = estimate(saving.change(best.config), best.geometry.processes, best.on_cpu, best.prompt)
        if other.peak is not None and needs(other) < 0.99 * needs(best):
            best = other
            taken[saving.flag.split()[0]] = saving.flag
    return f"It fits ({needs(best) / GIB:.1f} GiB) with {' '.join(taken.values())}"


class _Saving(NamedTuple):
    flag: str
    phases: tuple[str, ...]  # that it makes smaller
    change: Callable[[Config], Config]


_ALL = ("encoding", "sampling", "decoding", "updating")


def _savings(config: Config, processes: int) -> Iterator[_Saving]:
    """What is not set yet; of flags for one field the later saves more."""
    if config.dtype != "bf16":
        yield _Saving("--dtype bf16", _ALL, lambda c: replace(c, dtype="bf16"))
    if not config.free_text_encoders:
        yield _Saving("--free-text-encoders", _ALL, lambda c: replace(c, free_text_encoders=True))
    if not config.vae_slicing:
        yield _Saving("--vae-slicing", ("decoding",), lambda c: replace(c, vae_slicing=True))
    if config.vae_dtype != "bf16":
        yield _Saving("--vae-dtype bf16", ("decoding",), lambda c: replace(c, vae_dtype="bf16"))
    if config.offload == "none" and config.shard == "none":
        yield _Saving("--offload parts", _ALL, lambda c: replace(c, offload="parts"))
    if config.averages == "device":
        yield _Saving("--averages host", _ALL, lambda c: replace(c, averages="host"))
    if not config.gradient_checkpointing:
        yield _Saving("--gradient-checkpointing", ("updating",), lambda c: replace(c, gradient_checkpointing=True))
    for n in (config.group_size, 4, 1):
        if n < (config.micro_batch_size or config.num_groups * config.group_size):
            yield _Saving(f"--micro-batch-size {n}", ("updating",), lambda c, n=n: replace(c, micro_batch_size=n))
    for n in (16, 4, 1):
        if n < config.sampling.batch_size:
            fewer = replace(config.sampling, batch_size=n)
            yield _Saving(
                f"--sampling.batch-size {n}", ("sampling", "decoding"), lambda c, s=fewer: replace(c, sampling=s)
            )
    may_share = not config.compile and config.optimizer.name == "adamw" and config.base_precision == "auto"
    if processes > 1 and config.shard == "none" and may_share:
        yield _Saving("--shard full", _ALL, lambda c: replace(c, shard="full"))
    if config.finetune == "lora" and config.shard == "none":
        for bits in ("int8", "nf4"):
            if config.base_precision not in (bits, "nf4"):
                yield _Saving(f"--base-precision {bits}", _ALL, lambda c, b=bits: replace(c, base_precision=b))
    if config.finetune != "lora":
        yield _Saving("--finetune lora", _ALL, lambda c: replace(c, finetune="lora"))
