"""RUN/console.log: what the console said, with the time of day, for whoever has not seen its terminal.

It is for reading only, and a run does without it: a full disk or a folder that is gone ends no run.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from dgpo.utils.files import whole

NAME = "console.log"
MOST = 1 << 18
"""Bytes; a longer file loses its first half."""


def add_line(run: Path, text: str) -> None:
    """Append one line of the console."""
    path = run / NAME
    with suppress(OSError):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            size = file.tell()
        if size > MOST:
            _halve(path)


def last_lines(run: Path, count: int) -> list[str]:
    """The last lines, oldest first; none where the run has no such file."""
    try:
        with open(run / NAME, "rb") as file:
            file.seek(max(0, (run / NAME).stat().st_size - 400 * count))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def _halve(path: Path) -> None:
    kept = path.read_bytes()[-MOST // 2 :].partition(b"\n")[2]
    with whole(path) as unfinished:
        unfinished.write_bytes(kept)
