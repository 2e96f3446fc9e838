"""The runs in a folder, and what has changed since somebody last asked.

A thousand runs are read in slices: whoever asks gets at once what is known, and with it how many runs are still unread.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from dgpo.errors import UserError, did_you_mean
from dgpo.studio.run import Run, stamp_of

SLICE = 0.5
"""Seconds for reading runs before an answer is given."""
FRESH = 0.5
"""Seconds for which a look at the folder counts, whoever asks again."""
DIGITS = 18
"""Of the longest version of a list; Python makes no number of thousands of them."""


class Listing:
    """The runs in a folder: its own folders, or the folder itself if it is a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, Run] = {}
        self._gone: dict[str, int] = {}  # name -> the version at which it was not there any more
        self._version, self._looked = 0, -FRESH
        self._session = secrets.token_hex(4)
        self._lock = threading.Lock()

    def run(self, name: str) -> Run:
        """The run of this name, which is looked up and never made into a path."""
        with self._lock:
            if name not in self._runs:
                self._look()
            if name not in self._runs:
                raise NoRun(f"there is no run {name!r} in {self.folder}. {did_you_mean(name, self._runs)}"[:600])
            return self._runs[name]

    def all(self) -> list[Run]:
        """All runs, of which some may not be read yet."""
        with self._lock:
            self._look()
            return [*self._runs.values()]

    def changes(self, since: str = "") -> dict[str, Any]:
        """What has changed since an earlier answer, which gave `now`; everything without one.

        {"now": ..., "runs": [summaries], "gone": [names], "unread": runs that are not read yet}
        """
        with self._lock:
            if time.monotonic() - self._looked >= FRESH:
                self._look()
                self._update()
            session, _, version = since.partition("-")
            known = session == self._session and version.isdecimal() and len(version) <= DIGITS
            before = int(version) if known else -1
            return {
                "now": f"{self._session}-{self._version}",
                "runs": [run.summary for run in self._runs.values() if run.version > before and run.summary],
                "gone": [name for name, version in self._gone.items() if version > before],
                "unread": sum(run.unread for run in self._runs.values()),
            }

    def _look(self) -> None:
        found = _folders(self.folder)
        for name in [*self._runs]:
            if name not in found:
                self._version += 1
                del self._runs[name]
                self._gone[name] = self._version
        for name, folder in found.items():
            if name not in self._runs:
                self._runs[name] = Run(folder)
                self._gone.pop(name, None)

    def _update(self) -> None:
        """Read what has changed, and of the new runs as many as there is time for: one at least, newest first."""
        end = time.monotonic() + SLICE
        new = [run for run in self._runs.values() if run.unread]
        for run in [run for run in self._runs.values() if run.changed()]:
            self._describe(run)
        for run in sorted(new, key=lambda run: -stamp_of(run.folder / "metrics.jsonl")[0]):
            self._describe(run)
            if time.monotonic() > end:
                return  # the next call goes on at once
        self._looked = time.monotonic()

    def _describe(self, run: Run) -> None:
        run.listed = run.stamp()
        summary = run.describe()
        if summary != run.summary:
            self._version += 1
            run.summary, run.version = summary, self._version


class NoRun(UserError):
    """A name that is no run's."""


def _folders(folder: Path) -> dict[str, Path]:
    """name -> run folder."""
    if _is_run(folder):
        return {folder.resolve().name: folder}
    try:
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return {}
    return {path.name: path for path in paths if path.name.isprintable() and _is_run(path)}


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and any(
        (folder / n).exists() for n in ("environment.json", "metrics.jsonl")
    )
