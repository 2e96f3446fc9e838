"""GPUs by name: memory, arithmetic and bandwidth, from the vendor's data sheets.

The rates are peaks of tensor cores without sparsity: of bf16 with fp32 sums, and of TF32, in which a run's fp32
products are computed on a GPU. Where a product comes in several forms it is the SXM or HGX one.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

from dgpo.errors import UserError


class GPU(NamedTuple):
    """One GPU's data sheet."""

    name: str
    memory: int  # GiB
    bf16: float  # TFLOP/s, dense
    tf32: float  # TFLOP/s, dense
    bandwidth: int  # GB/s

    def peak(self, dtype: str) -> float:
        """FLOP/s of matrix products computed in "bf16" or, as TF32, in "fp32"."""
        return (self.bf16 if dtype == "bf16" else self.tf32) * 1e12


GPUS = (
    GPU("RTX 3090", 24, 71, 35.6, 936),
    GPU("RTX 4090", 24, 165.2, 82.6, 1008),
    GPU("L4", 24, 121, 60, 300),
    GPU("A10G", 24, 70, 35, 600),
    GPU("A100-40", 40, 312, 156, 1555),
    GPU("A100-80", 80, 312, 156, 2039),
    GPU("L40S", 48, 362, 183, 864),
    GPU("H100", 80, 989, 494, 3350),
    GPU("H200", 141, 989, 494, 4800),
    GPU("B200", 180, 2250, 1125, 8000),
)


def find_gpu(name: str) -> GPU:
    """The GPU of this name, however it is spelt: RTX 4090, rtx4090 and 4090 are one."""
    wanted = _plain(name)
    for gpu in GPUS:
        if wanted in (_plain(gpu.name), _plain(gpu.name).removeprefix("rtx")):
            return gpu
    known = {_plain(gpu.name): gpu.name for gpu in GPUS}
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
    hint = f"Did you mean {known[near[0]]!r}? " if near else ""
    raise UserError(f"--gpu {name!r} is not among the known ones. {hint}Known: {', '.join(known.values())}.")


def _plain(name: str) -> str:
    """rtx4090 for NVIDIA GeForce RTX 4090."""
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return "".join(word for word in words if word not in ("nvidia", "geforce")).removesuffix("gb")
