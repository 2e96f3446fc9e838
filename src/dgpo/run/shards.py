"""The tensors of a checkpoint as files: one for each named dict, or of a sharded run one from each of its ranks.

    policy.safetensors         or policy-1-of-4.safetensors, policy-2-of-4.safetensors, ...

A rank's file has its rows of every tensor (distributed/sharded.py says which); joined in order they are the tensor.
What has no rows, a count of steps, is the same in all files. So any number of ranks can read them, each its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

Rows = Callable[[int], slice]
"""Of so many rows those that are wanted."""


def file_name(name: str, shard: int, shards: int) -> str:
    """shard: the rank that writes the file, of so many."""
    return f"{name}.safetensors" if shards == 1 else f"{name}-{shard + 1}-of-{shards}.safetensors"


def files(folder: Path, name: str, shards: int) -> Iterator[Path]:
    """The files of a dict of tensors, in the order of their rows."""
    return (folder / file_name(name, shard, shards) for shard in range(shards))


def read(folder: Path, name: str, shards: int, rows: Rows | None = None) -> dict[str, Tensor]:
    """{key: tensor} on the CPU. rows: those that are wanted of each tensor; None: all."""
    if shards == 1 and rows is None:
        return load_file(folder / file_name(name, 0, 1))
    with ExitStack() as held:
        opened = [held.enter_context(safe_open(path, "pt")) for path in files(folder, name, shards)]
        keys = [*opened[0].keys()]
        return {key: _join([file.get_slice(key) for file in opened], opened[0], key, rows) for key in keys}


def read_own(folder: Path, name: str, shard: int, shards: int) -> dict[str, Tensor]:
    """What one rank wrote, as it wrote it."""
    return load_file(folder / file_name(name, shard, shards))


def _join(parts: list[Any], first: Any, key: str, rows: Rows | None) -> Tensor:
    """The wanted rows, of the parts that have some of them."""
    if not parts[0].get_shape():
        return first.get_tensor(key)
    lengths = [part.get_shape()[0] for part in parts]
    wanted = slice(0, sum(lengths)) if rows is None else rows(sum(lengths))
    found, start = [], 0
    for part, length in zip(parts, lengths):
        low, high = (min(max(edge - start, 0), length) for edge in (wanted.start, wanted.stop))
        if low < high or (part is parts[-1] and not found):
            found.append(part[low:high])
        start += length
    return torch.cat(found)
