"""RUN/failure.txt: why the run failed and how it goes on, as the console said; there only until the run goes on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dgpo import distributed

NAME = "failure.txt"


def note(run: Path, message: str) -> None:
    """Keep what the run failed of. A full disk may be the reason, and loses only this."""
    if distributed.is_main():
        with suppress(OSError):
            (run / NAME).write_text(f"{message}\n", encoding="utf-8")


def clear(run: Path) -> None:
    """The run goes on."""
    if distributed.is_main():
        (run / NAME).unlink(missing_ok=True)


def read(run: Path) -> str | None:
    """Why the run failed; None where it did not, or went on since."""
    try:
        return (run / NAME).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
