"""Counter-based randomness: a stream is a pure function of what it is for, so no global state is read or written.

`generator(seed, "rollout", iteration, group, member)` is the same on every rank, after every resume and for every
micro-batch size. Streams live on the CPU, whose generator gives the same numbers on every machine.
The engine behind it keeps 32 bits of the hash: among n streams two coincide with a chance of about n^2 / 2^33.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dgpo.utils.late import torch

if TYPE_CHECKING:
    from torch import Tensor


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator keyed by (seed, purpose, counters), independent of any other key's."""
    key = repr((int(seed), purpose, *map(int, counters))).encode()
    digest = hashlib.blake2b(key, digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def randn_rows(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal rows, each from its own generator. Returns (len(generators), *shape) fp32 on the CPU."""
    rows = [torch.randn(tuple(shape), generator=own) for own in generators]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
