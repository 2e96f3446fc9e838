"""What people answered: RUN/picks.jsonl, a line an answer. It is only ever added to.

    {"group": 12, "asked": "train", "who": "ana", "prompt": "a red cube", "images": [SHA-256 ...],
     "good": [0, 3], "bad": [1], "seconds": 4.2, "time": "2026-11-26T18:30:00Z"}

Instead of `good` and `bad`: `"ranks": [2, 1, 1, 3]`, 1 for the best, ties allowed; `"same": true`, none is better; or
`"skip": true`, nothing to say. `"undo": true` takes back that person's answer to that question. A line is on the disk
before its writer says so. A line that a crash cut short was never acknowledged, and is passed over.

`asked` tells why a group was shown: `train` to learn from it; `again` to whoever has answered it before, to see how
consistent they are; `also` to another person, to see whether they agree; `blind` to compare base and trained model.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from dgpo.errors import UserError
from dgpo.utils.files import sync_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "picks.jsonl"
AGAIN, ALSO = "again", "also"
LONGEST_NAME = 40


class NotKept(UserError):
    """An answer that could not be written."""


class Question(NamedTuple):
    """What one person is asked at most once."""

    group: int
    asked: str  # train, again, also or blind
    who: str


class Choice(NamedTuple):
    """What a person says of a group. Exactly one form is given."""

    good: tuple[int, ...] = ()
    bad: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    same: bool = False
    skip: bool = False

    def rewards(self, size: int) -> list[float] | None:
        """One for each picture, in [-1, 1]: good 1, bad -1, unmarked 0; ranks evenly from 1 to -1. None: skipped."""
        if self.skip:
            return None
        if self.ranks:
            steps = sorted({*self.ranks})
            places = {rank: place for place, rank in enumerate(steps)}
            last = max(1, len(steps) - 1)
            return [1 - 2 * places[rank] / last for rank in self.ranks] if len(steps) > 1 else [0.0] * size
        return [float(picture in self.good) - float(picture in self.bad) for picture in range(size)]


class Pick(NamedTuple):
    """An answer that stands."""

    question: Question
    choice: Choice
    seconds: float
    time: str


def choice_of(given: Mapping[str, Any], size: int) -> Choice:
    """What was answered to a group of so many pictures. Raises UserError where it is no answer."""
    marks = [name for name in ("good", "bad") if given.get(name)]
    forms = [*(["good and bad"] if marks else []), *(name for name in ("ranks", "same", "skip") if given.get(name))]
    if len(forms) != 1:
        raise UserError(
            f"the answer has {' as well as '.join(forms) or 'nothing'}; give good and bad pictures, or ranks, or same, "
            "or skip"
        )
    good, bad = (_pictures(name, given.get(name, []), size) for name in ("good", "bad"))
    if both := sorted({*good} & {*bad}):
        raise UserError(f"picture {both[0]} is good as well as bad; let it be one of them, or neither")
    ranks = given.get("ranks") or []
    if ranks and (
        not isinstance(ranks, list) or len(ranks) != size or not all(type(rank) is int and rank >= 1 for rank in ranks)
    ):
        raise UserError(
            f"ranks={ranks!r} must be a whole number for each of the {size} pictures, 1 for the best, ties allowed"
        )
    for name in ("same", "skip"):
        if given.get(name) not in (None, False, True):
            raise UserError(f"{name}={given[name]!r} must be true or false")
    return Choice(good, bad, tuple(ranks), given.get("same") is True, given.get("skip") is True)


def _pictures(name: str, value: Any, size: int) -> tuple[int, ...]:
    """The pictures that are marked, by number."""
    if not isinstance(value, list) or not all(type(picture) is int for picture in value):
        raise UserError(f"{name}={value!r} must be a list of pictures' numbers, from 0")
    for picture in value:
        if not 0 <= picture < size:
            raise UserError(f"{name} names picture {picture}, and there are pictures 0 to {size - 1}")
    return tuple(sorted({*value}))


def require_name(who: Any) -> str:
    """The name of whoever answers."""
    name = who.strip() if isinstance(who, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(f"who={who!r} must be a name of 1 to {LONGEST_NAME} letters: answers are kept with it")
    return name


class Picks:
    """The answers of a run that stand. A look reads what was added since the last one."""

    def __init__(self, run: Path) -> None:
        self.path = run / NAME
        self.unreadable = 0  # lines
        self._at = 0  # bytes read
        self._picks: dict[Question, Pick] = {}

    def all(self) -> dict[Question, Pick]:
        """question -> answer, in the order in which they were given. A later look does not change what was returned."""
        new = [*self._new_lines()]
        if new:
            picks = self._picks.copy()
            for line in new:
                self._take(line, picks)
            self._picks = picks
        return self._picks

    def of(self, group: int) -> list[Pick]:
        """All answers to a group."""
        return [pick for question, pick in self.all().items() if question.group == group]

    def _new_lines(self) -> Iterator[bytes]:
        try:
            size = self.path.stat().st_size
        except OSError:
            return
        if size <= self._at:
            return
        with open(self.path, "rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):  # is being written, or was cut short
                    return
                self._at += len(line)
                yield line

    def _take(self, line: bytes, picks: dict[Question, Pick]) -> None:
        if not line.strip():
            return
        try:
            told = json.loads(line)
            question = Question(int(told["group"]), str(told["asked"]), str(told["who"]))
            if told.get("undo"):
                picks.pop(question, None)
                return
            choice = choice_of(told, len(told["images"]))
            picks[question] = Pick(question, choice, float(told["seconds"]), str(told["time"]))
        except (ValueError, KeyError, TypeError, RecursionError, UserError):
            self.unreadable += 1

    @contextmanager
    def adding(self) -> Iterator[Adder]:
        """Hold the file, so that what was looked up stays true until the answer is on the disk."""
        new = not self.path.exists()
        with open(self.path, "ab+", buffering=0) as file:  # what could not be written is not written when it is closed
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            if new:
                sync_folder(self.path.parent)
            self.all()
            yield Adder(file)


class Adder:
    """Adds lines to the file that is held."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def answer(self, question: Question, choice: Choice, about: Mapping[str, Any], seconds: float) -> None:
        """Keep an answer. about: prompt and images of the group"""
        told = {name: value for name, value in choice._asdict().items() if value}
        if "good" in told or "bad" in told:
            told = {"good": choice.good, "bad": choice.bad}
        self._add({**question._asdict(), **about, **told, "seconds": round(seconds, 2)})

    def undo(self, question: Question) -> None:
        """Take an answer back."""
        self._add({**question._asdict(), "undo": True})

    def _add(self, told: Mapping[str, Any]) -> None:
        line = json.dumps({**told, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}, ensure_ascii=False)
        end = self._file.seek(0, os.SEEK_END)
        if end and _last_byte(self._file, end) != b"\n":  # of a line that a crash cut short
            line = "\n" + line
        left = memoryview(line.encode() + b"\n")
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # or it would count, and nobody was told that it does
                self._file.truncate(end)
            raise NotKept(f"the answer could not be kept: {error}. Make room, and answer again") from error


def _last_byte(file: Any, end: int) -> bytes:
    file.seek(end - 1)
    return file.read(1)


def mean_rewards(picks: Sequence[Pick], size: int) -> list[float] | None:
    """What a group's pictures earned, on average over its answers; None where all were skipped."""
    given = [rewards for pick in picks if (rewards := pick.choice.rewards(size)) is not None]
    return [sum(column) / len(given) for column in zip(*given)] if given else None
