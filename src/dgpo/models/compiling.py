"""torch.compile for the blocks that a network repeats, which is faster to compile than the whole."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import torch

from dgpo.errors import UserError


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


def require_compiler(device: torch.device, setting: str = "compile", without: str = "leave compile off") -> None:
    """UserError where torch.compile would not find what it builds with: C++ for the CPU, C for a GPU's launchers.

    setting: what compiles; without: what else would do, as a clause
    """
    if device.type == "cpu":
        own, usual = "CXX", [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    else:
        own, usual = "CC", ["gcc", "clang", "cc", "cl"]
    named = os.environ.get(own)
    if not any(map(shutil.which, [named] if named else usual)):
        raise UserError(
            f"{setting} needs a compiler for {device.type} code, and there is no {named or ' or '.join(usual)} on the "
            f"path; install one, name it in {own}, or {without}"
        )
