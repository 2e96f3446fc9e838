"""The end of metrics.jsonl, read from behind: what a list of a thousand runs needs, without reading them whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

Row = dict[str, Any]
RECENT = 10
BLOCK, MOST = 1 << 15, 1 << 22
"""Bytes read at a time, and at most: an evaluation further back is not looked for."""


class Tail(NamedTuple):
    """The last rows of each kind."""

    trained: list[Row]  # at most RECENT, oldest first
    evaluated: Row | None

    @property
    def iteration(self) -> int | None:
        """Finished iterations; None where nothing was logged."""
        rows = [*self.trained[-1:], *([self.evaluated] if self.evaluated else [])]
        return max((row["iteration"] for row in rows), default=None)

    @property
    def elapsed(self) -> float:
        """Seconds of training."""
        return max((row.get("time/elapsed") or 0.0 for row in self.trained), default=0.0)


def read_tail(path: Path) -> Tail:
    """The last rows; a line that is not whole is left out, and a missing file has none."""
    trained: list[Row] = []
    evaluated: Row | None = None
    try:
        with open(path, "rb") as file:
            for line in _backwards(file):
                row = _row(line)
                if row is None:
                    continue
                if any(key.startswith("eval/") for key in row):
                    evaluated = evaluated or row
                elif len(trained) < RECENT:
                    trained.append(row)
                if evaluated and len(trained) == RECENT:
                    break
    except OSError:
        return Tail([], None)
    return Tail(trained[::-1], evaluated)


def _backwards(file: BinaryIO) -> Iterator[bytes]:
    """The lines from the last to the first, as far as MOST allows."""
    end = file.seek(0, 2)
    least, rest = max(0, end - MOST), b""
    while end > least:
        start = max(least, end - BLOCK)
        file.seek(start)
        first, *lines = (file.read(end - start) + rest).split(b"\n")
        yield from reversed(lines)
        rest, end = first, start
    if least == 0:
        yield rest


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else None
