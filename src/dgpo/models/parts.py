"""What several families are made of: guidance, sizes, the grids of flow schedulers, patches as tokens, autoencoders."""

from __future__ import annotations

import copy
import math
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dgpo.errors import UserError


def linear_guidance(v_uncond: Tensor, v_cond: Tensor, scale: float) -> Tensor:
    """`v_uncond + scale (v_cond - v_uncond)` (Ho and Salimans 2022, arXiv 2207.12598)."""
    return v_uncond + scale * (v_cond - v_uncond)


def scheduler_grid(pipeline: Any, num_steps: int, **settings: Any) -> Tensor:
    """The sigmas of a flow-matching pipeline's scheduler, which is left as it was."""
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(num_steps, **settings)
    return scheduler.sigmas


def fitting_side(resolution: int | None, own: int, multiple: int, largest: int | None = None) -> int:
    """The side in pixels, the model's own if None. UserError where it is no multiple of `multiple` or too large."""
    side = own if resolution is None else resolution
    if side % multiple or side <= 0 or (largest is not None and side > largest):
        limit = f" up to {largest}" if largest else ""
        raise UserError(f"resolution={side} does not fit this model: it draws multiples of {multiple} pixels{limit}")
    return side


def compile_blocks(network: Any, device: torch.device) -> None:
    """Let torch.compile have the blocks that a network repeats; UserError where it has none, or torch no compiler.

    Each is compiled when first called, for the very sizes of the call, so that what computes does not depend on what
    was called before. Alike blocks share the work; other weight sets, batch sizes and passes with gradient need their
    own, for which the usual limit on variants is too low.
    """
    from torch._dynamo import config  # its import takes a second

    require_compiler(device)
    names = network._repeated_blocks or [n for n in network._no_split_modules or () if n.endswith("Block")]
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    if not blocks:
        raise UserError(f"compile: diffusers names no repeated blocks of a {type(network).__name__}; leave it off")
    config.cache_size_limit = max(64, config.cache_size_limit)
    for block in blocks:
        block.compile(dynamic=False)


def require_compiler(device: torch.device) -> None:
    """UserError where torch.compile would not find what it builds with: C++ for the CPU, C for a GPU's launchers."""
    if device.type == "cpu":
        own, usual = "CXX", [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    else:
        own, usual = "CC", ["gcc", "clang", "cc", "cl"]
    named = os.environ.get(own)
    if not any(map(shutil.which, [named] if named else usual)):
        raise UserError(
            f"compile needs a compiler for {device.type} code, and there is no {named or ' or '.join(usual)} on the "
            f"path; install one, name it in {own}, or leave compile off"
        )


def encoded_mean(vae: Any, images: Tensor) -> Tensor:
    """Images in [-1, 1] -> the autoencoder's own latents, fp32; their mean where they are random."""
    encoded = vae.encode(images.to(vae.dtype), return_dict=False)[0]
    return (encoded if isinstance(encoded, Tensor) else encoded.mode()).float()  # AutoencoderTiny is not random


def pack(latents: Tensor) -> Tensor:
    """Each 2x2 patch as a token: (n, C, h, w) -> (n, h w / 4, 4 C)."""
    return pixel_unshuffle(latents, 2).flatten(2).mT


def unpack(tokens: Tensor, height: int) -> Tensor:
    """The inverse: (n, h w / 4, 4 C) -> (n, C, h, w)."""
    return pixel_shuffle(tokens.mT.unflatten(2, (height // 2, -1)), 2)


def fitting_length(max_sequence_length: int | None, own: int, largest: int) -> int:
    """The number of text tokens, the pipeline's own if None. UserError where the pipeline would not take it."""
    length = own if max_sequence_length is None else max_sequence_length
    if not 1 <= length <= largest:
        raise UserError(f"max_sequence_length={length} does not fit this model: it reads 1 to {largest} text tokens")
    return length


def scheduler_shift(config: Mapping[str, Any], latent_shape: tuple[int, int, int], max_shift: float = 1.15) -> float:
    """The shift of the scheduler's grid at this size: fixed, or following the number of image tokens.

    max_shift: what the stock pipeline takes where its scheduler names none. UserError for a scheduler of no flow.
    """
    if config.get("invert_sigmas"):
        raise UserError("the pipeline's scheduler has invert_sigmas=true: such a network counts t from noise to data")
    if config.get("use_dynamic_shifting"):
        mu = dynamic_mu(config, latent_shape, max_shift)
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
    """(num_steps + 1,) what the stock call tells its scheduler: even steps from 1, and the shift of this size."""
    even = [1 - step / num_steps for step in range(num_steps)]
    return scheduler_grid(pipeline, num_steps, sigmas=even, mu=dynamic_mu(pipeline.scheduler.config, latent_shape))


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
