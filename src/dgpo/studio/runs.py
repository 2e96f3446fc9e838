"""The runs in a folder, read when asked and only where files have changed since.

A thousand runs are read in slices: whoever asks gets at once what is known, and with it how many runs are still unread.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dgpo import __version__
from dgpo.errors import UserError, did_you_mean
from dgpo.report.changes import DRIFT
from dgpo.report.grids import Samples, read_samples
from dgpo.report.log import is_in_domain, read_mapping
from dgpo.report.sections import heading
from dgpo.report.words import number, signed
from dgpo.run import failure
from dgpo.run.changes import ALARMS
from dgpo.run.checkpoint import list_checkpoints
from dgpo.run.console_log import NAME as CONSOLE
from dgpo.run.metric_names import eval_names
from dgpo.run.requests import FOLDER as REQUESTS
from dgpo.run.requests import waiting
from dgpo.studio.state import RUNNING, UNREADABLE, State, state_of, time_left
from dgpo.studio.tail import Tail, read_tail

WATCHED = (
    "config.yaml",
    "metrics.jsonl",
    "lock",
    failure.NAME,
    "checkpoints",
    "failures",
    "samples",
    REQUESTS,
    CONSOLE,
)
"""What of a run folder changes when there is something new to say."""
SLICE = 0.5
"""Seconds for reading runs before an answer is given."""
FRESH = 0.5
"""Seconds for which a look at the folder counts, whoever asks again."""

Stamp = tuple[tuple[int, int], ...]


class Known(NamedTuple):
    """What was read of a run, and of which files."""

    stamp: Stamp
    config: dict[str, Any]
    tail: Tail
    problem: str  # because of which it cannot be read


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.address = f"/run/{quote(folder.name, safe='')}"
        self.version = 0  # of the list, at which the summary was last another one
        self.summary: dict[str, Any] = {}  # for the list, of the files as `listed` says
        self.listed: Stamp = ()
        self._known: Known | None = None
        self._samples: tuple[int, Samples | None] = (-1, None)

    @property
    def unread(self) -> bool:
        """Whether the list has nothing to say of it yet."""
        return not self.summary

    def stamp(self) -> Stamp:
        """Changes when a watched file does."""
        return tuple(_stamp(self.folder / name) for name in WATCHED)

    def changed(self) -> bool:
        """Whether the list may have something new to say. Of a running one always: it may end and touch no file."""
        return not self.unread and (self.summary["state"] == RUNNING or self.listed != self.stamp())

    def known(self) -> Known:
        """Its config and last rows, read again where a file has changed."""
        stamp = self.stamp()
        if self._known is None or self._known.stamp != stamp:
            self._known = self._read(stamp)
        return self._known

    def _read(self, stamp: Stamp) -> Known:
        before = self._known
        try:
            same = before is not None and before.stamp[0] == stamp[0] and not before.problem
            config = before.config if same and before else read_mapping(self.folder / "config.yaml")
            same = before is not None and before.stamp[1] == stamp[1]
            tail = before.tail if same and before else read_tail(self.folder / "metrics.jsonl")
        except (UserError, OSError) as error:
            return Known(stamp, {}, Tail([], None), str(error))
        return Known(stamp, config, tail, "")

    def state(self) -> State:
        """Whether it goes on, and if not, why."""
        known = self.known()
        if known.problem:
            return State(UNREADABLE, known.problem)
        return state_of(self.folder, known.config, known.tail)

    def other_version(self) -> str:
        """What to say where another version wrote the run; empty where this one did."""
        try:
            version = read_mapping(self.folder / "environment.json").get("dgpo")
        except (UserError, OSError):
            return ""
        if version in (None, __version__):
            return ""
        return f"written by dgpo {version}; this is {__version__}, which shows of it what it knows"

    def describe(self) -> dict[str, Any]:
        """What the list shows of it, as JSON."""
        known, state = self.known(), self.state()
        config, tail = known.config, known.tail
        head = heading(config, self.name)
        running = state.name == RUNNING
        saved = list_checkpoints(self.folder)
        return {
            "name": self.name,
            "address": self.address,
            "title": head["name"] or self.name,
            "model": head["model"],
            "algorithm": head["algorithm"],
            "state": state.name,
            "why": state.why,
            "note": self.other_version(),
            "iteration": tail.iteration or 0,
            "iterations": config.get("iterations"),
            "left": time_left(self.folder, tail) if running else "",
            "alarm": bool((tail.evaluated or {}).get(ALARMS)),
            "scores": _last_scores(tail, config),
            "updated": self._updated(),
            "thumbnail": self._thumbnail(),
            "checkpoint": saved[-1].name if saved else None,
            "asked": waiting(self.folder) if running else [],
        }

    def samples(self) -> Samples | None:
        """Its pictures, read again when an evaluation has added some."""
        modified = _stamp(self.folder / "samples")[0]
        if self._samples[0] != modified:
            self._samples = (modified, read_samples(self.folder))
        return self._samples[1]

    def pictures(self) -> dict[tuple[int, int], Path]:
        """(iteration, number) -> the file, of every picture that may be shown."""
        samples = self.samples()
        paths = [path for some in samples.iterations.values() for path in some] if samples else []
        return {numbers_of(path): path for path in paths}

    def picture_address(self, path: Path) -> str:
        """From where a page loads a picture."""
        iteration, picture = numbers_of(path)
        return f"{self.address}/picture/{iteration}/{picture}?{path.stat().st_mtime_ns}"

    def failures(self) -> list[dict[str, Any]]:
        """The prompts and pictures on which a reward failed, newest first."""
        found = sorted((self.folder / "failures").glob("*.json"), key=lambda path: -path.stat().st_mtime)
        return [_failure(path) for path in found[:12]]

    def failure_pictures(self) -> dict[str, Path]:
        """name -> the file, of every picture of a failure."""
        return {path.stem: path for path in (self.folder / "failures").glob("*.png")}

    def newest_picture(self) -> Path | None:
        """The first picture of the last evaluation."""
        grids = sorted((self.folder / "samples").glob("iteration-[0-9]*.png"))
        first = grids[-1].with_suffix("") / "000.png" if grids else None
        return first if first and first.is_file() else None

    def _thumbnail(self) -> str | None:
        picture = self.newest_picture()
        return f"{self.address}/thumbnail?{picture.stat().st_mtime_ns}" if picture else None

    def _updated(self) -> float:
        """When it last logged something, in seconds since 1970."""
        return max(_stamp(self.folder / name)[0] for name in ("config.yaml", "metrics.jsonl")) / 1e9


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

    def changes(self, since: str = "") -> dict[str, Any]:
        """What has changed since an earlier answer, which gave `now`; everything without one.

        {"now": ..., "runs": [summaries], "gone": [names], "unread": runs that are not read yet}
        """
        with self._lock:
            if time.monotonic() - self._looked >= FRESH:
                self._look()
                self._update()
            session, _, version = since.partition("-")
            before = int(version) if session == self._session and version.isdecimal() else -1
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
        """Read what has changed, and of the runs that are new as many as there is time for, newest first."""
        end = time.monotonic() + SLICE
        new = [run for run in self._runs.values() if run.unread]
        for run in [run for run in self._runs.values() if run.changed()]:
            self._describe(run)
        for run in sorted(new, key=lambda run: -_stamp(run.folder / "metrics.jsonl")[0]):
            if time.monotonic() > end:
                return  # the next call goes on at once
            self._describe(run)
        self._looked = time.monotonic()

    def _describe(self, run: Run) -> None:
        run.listed = run.stamp()
        try:
            summary = run.describe()
        except (UserError, OSError, ValueError, TypeError, KeyError) as error:
            summary = {
                "name": run.name,
                "address": run.address,
                "title": run.name,
                "state": UNREADABLE,
                "why": str(error),
            }
        if summary != run.summary:
            self._version += 1
            run.summary, run.version = summary, self._version


class NoRun(UserError):
    """A name that is no run's."""


def numbers_of(picture: Path) -> tuple[int, int]:
    """(20, 3) of samples/iteration-000020/003.png."""
    return int(picture.parent.name.removeprefix("iteration-")), int(picture.stem)


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


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _last_scores(tail: Tail, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last evaluation's scores on whole sets, and how far each is from the first evaluation; trained ones first."""
    row = {key: value for key, value in (tail.evaluated or {}).items() if isinstance(value, (int, float))}
    names = [name for name in eval_names(row) if not name.tag and name.score != DRIFT]
    names.sort(key=lambda name: (not name.score.endswith("_strict"), not is_in_domain(name.score, config)))
    return [
        {
            "name": f"{name.score}, {name.eval_set}",
            "trained": is_in_domain(name.score, config),
            "value": number(row[name.key]),
            "change": signed(row[f"{name.key}/change"], row[name.key]) if f"{name.key}/change" in row else "",
        }
        for name in names
    ]


def _failure(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        note = {}
    trace = path.with_suffix(".txt")
    text = trace.read_text(encoding="utf-8", errors="replace") if trace.is_file() else ""
    return {
        "name": path.stem,
        "reward": str(note.get("reward", "")),
        "prompt": str(note.get("prompt", "")),
        "error": (text.strip().splitlines() or [""])[-1],
        "picture": path.with_suffix(".png").is_file(),
    }
