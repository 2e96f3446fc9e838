"""One run folder, as the studio sees it. Files are read when asked, and again only where they have changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dgpo import __version__
from dgpo.errors import UserError
from dgpo.report.changes import DRIFT
from dgpo.report.grids import Samples, read_samples
from dgpo.report.log import is_in_domain, read_mapping
from dgpo.report.sections import heading
from dgpo.report.words import number, signed
from dgpo.run import failure, lock
from dgpo.run.changes import ALARMS
from dgpo.run.checkpoint import list_checkpoints
from dgpo.run.console_log import NAME as CONSOLE
from dgpo.run.metric_names import eval_names
from dgpo.run.requests import FOLDER as REQUESTS
from dgpo.run.requests import waiting
from dgpo.studio.state import RUNNING, UNREADABLE, State, state_of, time_left
from dgpo.studio.tail import Tail, read_tail
from dgpo.teach.groups import FOLDER as TEACH
from dgpo.utils.people import HUMAN

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
Stamp = tuple[tuple[int, int], ...]


class Known(NamedTuple):
    """What was read of a run, and of which files."""

    stamp: Stamp
    config: dict[str, Any]
    tail: Tail
    problem: str  # because of which it cannot be read


class Pictured(NamedTuple):
    """What was read of a run's pictures, when their folder had last changed."""

    modified: int
    samples: Samples | None
    files: dict[tuple[str, str], Path]  # by iteration and number, as they stand in an address


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.address = f"/run/{quote(folder.name, safe='')}"
        self.teach_address = f"/teach/{quote(folder.name, safe='')}"
        self.version = 0  # of the list, at which the summary was last another one
        self.summary: dict[str, Any] = {}  # for the list, of the files as `listed` says
        self.listed: Stamp = ()
        self._known: Known | None = None
        self._pictures = Pictured(-1, None, {})

    @property
    def unread(self) -> bool:
        """Whether the list has nothing to say of it yet."""
        return not self.summary

    def stamp(self) -> Stamp:
        """Changes when a watched file does."""
        return tuple(stamp_of(self.folder / name) for name in WATCHED)

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
        except Exception as error:
            return Known(stamp, {}, Tail([], None), problem_of(error))
        return Known(stamp, config, tail, "")

    def state(self) -> State:
        """Whether it goes on, and if not, why."""
        known = self.known()
        if known.problem:
            return State(UNREADABLE, known.problem)
        try:
            return state_of(self.folder, known.config, known.tail)
        except Exception as error:
            return State(UNREADABLE, problem_of(error))

    def is_taught(self) -> bool:
        """Whether people teach it."""
        rewards = self.known().config.get("rewards")
        return isinstance(rewards, dict) and HUMAN in rewards

    def may_be_taught(self) -> bool:
        """Whether its folder looks like it, which costs less than reading its config."""
        return any((self.folder / name).exists() for name in (TEACH, lock.NAME))

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
        """What the list shows of it, as JSON; of a damaged run that it is unreadable."""
        try:
            summary = self._describe()
            json.dumps(summary, ensure_ascii=False, allow_nan=False).encode()  # YAML also has dates and infinities
        except Exception as error:
            return self.unreadable(problem_of(error))
        return summary

    def unreadable(self, why: str) -> dict[str, Any]:
        """What the list shows of a damaged run."""
        return {
            "name": self.name,
            "address": self.address,
            "title": self.name,
            "state": UNREADABLE,
            "why": why,
        }

    def _describe(self) -> dict[str, Any]:
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
            "teach": self.teach_address if self.is_taught() else "",
        }

    def samples(self) -> Samples | None:
        """Its pictures, read again when an evaluation has added some."""
        return self._pictured().samples

    def picture(self, iteration: str, number: str) -> Path | None:
        """The file of a picture, by the words of its address; None where there is none that may be shown."""
        path = self._pictured().files.get((iteration, number))
        return path if path and self.holds(path) else None

    def _pictured(self) -> Pictured:
        modified = stamp_of(self.folder / "samples")[0]
        if self._pictures.modified != modified:
            samples = read_samples(self.folder)
            paths = [path for some in samples.iterations.values() for path in some] if samples else []
            self._pictures = Pictured(modified, samples, {_words_of(path): path for path in paths})
        return self._pictures

    def picture_address(self, path: Path) -> str:
        """From where a page loads a picture."""
        iteration, picture = _words_of(path)
        return f"{self.address}/picture/{iteration}/{picture}?{path.stat().st_mtime_ns}"

    def failures(self) -> list[dict[str, Any]]:
        """The prompts and pictures on which a reward failed, newest first."""
        notes = [path for path in (self.folder / "failures").glob("*.json") if self.holds(path)]
        notes.sort(key=lambda path: -stamp_of(path)[0])
        return [self._failure(path) for path in notes[:12]]

    def _failure(self, path: Path) -> dict[str, Any]:
        note, trace, picture = _note(path), path.with_suffix(".txt"), path.with_suffix(".png")
        readable = trace.is_file() and self.holds(trace)
        text = trace.read_text(encoding="utf-8", errors="replace") if readable else ""
        return {
            "name": path.stem,
            "reward": str(note.get("reward", "")),
            "prompt": str(note.get("prompt", "")),
            "error": (text.strip().splitlines() or [""])[-1],
            "picture": picture.is_file() and self.holds(picture),
        }

    def failure_pictures(self) -> dict[str, Path]:
        """name -> the file, of every picture of a failure."""
        return {path.stem: path for path in (self.folder / "failures").glob("*.png") if self.holds(path)}

    def newest_picture(self) -> Path | None:
        """The first picture of the last evaluation."""
        grids = sorted((self.folder / "samples").glob("iteration-[0-9]*.png"))
        first = grids[-1].with_suffix("") / "000.png" if grids else None
        return first if first and first.is_file() and self.holds(first) else None

    def holds(self, path: Path) -> bool:
        """Whether a file lies in the run folder, wherever links lead: a link out of it would show any file."""
        return path.resolve().is_relative_to(self.folder.resolve())

    def _thumbnail(self) -> str | None:
        picture = self.newest_picture()
        return f"{self.address}/thumbnail?{picture.stat().st_mtime_ns}" if picture else None

    def _updated(self) -> float:
        """When it last logged something, in seconds since 1970."""
        return max(stamp_of(self.folder / name)[0] for name in ("config.yaml", "metrics.jsonl")) / 1e9


def problem_of(error: Exception) -> str:
    """What to say where reading a run has failed. Its files may hold anything, and so may raise anything."""
    if isinstance(error, (UserError, OSError)):
        return str(error)
    return f"a file of the run does not hold what dgpo writes: {type(error).__name__}: {error}"[:600]


def _words_of(picture: Path) -> tuple[str, str]:
    """("20", "3") of samples/iteration-000020/003.png."""
    return str(int(picture.parent.name.removeprefix("iteration-"))), str(int(picture.stem))


def stamp_of(path: Path) -> tuple[int, int]:
    """When a file has last changed and how large it is; zeros where it is not there."""
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


def _note(path: Path) -> dict[str, Any]:
    """The reward and the prompt of a failure; empty where the file does not tell."""
    try:
        note = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
