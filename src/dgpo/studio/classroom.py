"""One run that people teach, as the studio sees it: what it asks, keeps and tells.

Pictures of a question are numbered as they are shown. A group that is shown again has another order, so that nobody
repeats an answer from memory of its place. Which picture of a comparison is the trained model's is never told.
"""

from __future__ import annotations

import hashlib
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dgpo.config import TRAINED, Config, load_yaml
from dgpo.errors import UserError
from dgpo.report.pictures import is_tiny
from dgpo.studio.run import Run, stamp_of
from dgpo.studio.state import FINISHED, RUNNING
from dgpo.teach import tally
from dgpo.teach.desk import Asked, Desk
from dgpo.teach.groups import BLIND, TRAIN
from dgpo.teach.learned import Lessons
from dgpo.teach.picks import AGAIN, ALSO, Choice, Question, choice_of

STEP = 4
"""Comparisons after which the win rate is told anew: after every one it would give its answer away."""


class NoGroup(UserError):
    """An ID that is no group's."""


class Classroom:
    """The desk of a run, which several requests use at a time: its methods take turns."""

    def __init__(self, run: Run, config: Config) -> None:
        self.config = config
        self._run, self._lock = run, threading.Lock()
        self._lessons = Lessons(run.folder, config.rewards)
        self._desk = Desk(self._lessons, config.human)
        self._tallied: tuple[Any, dict[str, Any]] = ((), {})

    def next(self, who: str, after: str | None) -> dict[str, Any] | None:
        """What this person is asked, or what comes after that question; None: nothing is drawn yet."""
        with self._lock:
            asked = self._desk.next(who, self._question(after, who) if after else None)
            return self._tell(asked) if asked else None

    def answer(self, given: Mapping[str, Any], who: str) -> dict[str, Any]:
        """Keep an answer, and say what comes next."""
        with self._lock:
            question = self._question(given.get("group"), who)
            shown = choice_of(given, self._lessons.groups.all()[question.group].size)
            self._desk.answer(question, as_drawn(shown, self._order(question)))
            following = self._desk.next(who)
            return {
                "saved": id_of(question),
                "left": self._left(),
                "next": self._tell(following) if following else None,
            }

    def undo(self, who: str) -> dict[str, Any]:
        """Take this person's last answer back: the question, and `before`, what they said."""
        with self._lock:
            asked = self._desk.undo(who)
            assert asked.before is not None
            before = as_shown(asked.before, self._order(asked.question))
            return {**self._tell(asked), "before": {name: value for name, value in before._asdict().items() if value}}

    def picture(self, name: str, place: str) -> Path | None:
        """The file of a picture as a question shows it; None where there is none that may be shown."""
        with self._lock:
            question = self._question(name, "")
            order = self._order(question)
            if not (place.isdecimal() and len(place) < 4 and int(place) < len(order)):
                return None
            path = self._lessons.groups.picture(question.group, order[int(place)])
        return path if path and self._run.holds(path) else None

    def waiting(self) -> dict[str, Any]:
        """Why there is nothing to ask."""
        with self._lock:
            why, left = self._why(), self._left()
        return {"waiting": why, "left": left, **self._trainer()}

    def status(self) -> dict[str, Any]:
        """How far the run is, what the last update did, and what the answers say."""
        with self._lock:
            tallied, updates = self._tally(), self._lessons.updates.all()
        done = self._run.known().tail
        last = updates[-1] if updates else None
        rows = {row["iteration"]: row for row in done.trained}
        told = last and {
            "iteration": last.iteration + 1,
            "new": len(last.new),
            "earlier": len(last.earlier),
            "metrics": rows.get(last.iteration + 1),
        }
        return {
            "run": self._run.name,
            "state": self._run.state().name,
            "why": self._run.state().why,
            **self._trainer(),
            **tallied,
            "each": self.config.num_groups,
            "iterations": self.config.iterations,
            "updates": len(updates) - self._is_learning(),
            "last": told or None,
            "compares": self._compares(),
            "step": STEP,
            "samples": str(stamp_of(self._run.folder / "samples")[0]),
        }

    def _question(self, name: Any, who: str) -> Question:
        """The question of an ID."""
        number, dash, asked = name.partition("-") if isinstance(name, str) else ("", "", "")
        known = number.isascii() and number.isdecimal() and len(number) <= 6 and (asked in (AGAIN, ALSO) or not dash)
        group = self._lessons.groups.all().get(int(number)) if known else None
        if group is None or (dash and group.kind == BLIND):
            raise NoGroup(f"the run {self._run.name} has no group {name!r}; GET /api/teach/next names one"[:300])
        return Question(group.number, asked or group.kind, who)

    def _order(self, question: Question) -> list[int]:
        """Which picture stands in each place."""
        size = self._lessons.groups.all()[question.group].size
        if question.asked not in (AGAIN, ALSO):
            return [*range(size)]
        name = id_of(question)
        order = sorted(range(size), key=lambda picture: hashlib.sha256(f"{name} {picture}".encode()).digest())
        return order if order != [*range(size)] else order[::-1]

    def _tell(self, asked: Asked) -> dict[str, Any]:
        name, group, order = id_of(asked.question), asked.group, self._order(asked.question)
        address = f"/teach/{quote(self._run.name, safe='')}/picture/{name}"
        first = self._lessons.groups.picture(group.number, 0)
        return {
            "group": name,
            "run": self._run.name,
            "kind": group.kind,
            "prompt": group.prompt,
            "images": [f"{address}/{place}?{group.images[picture][:12]}" for place, picture in enumerate(order)],
            "size": group.size,
            "tiny": first is not None and is_tiny(first),
            "left": self._left(),
        }

    def _left(self) -> int:
        return self._tally()["left"]

    def _tally(self) -> dict[str, Any]:
        """What the answers say. Computed again where a file has changed."""
        lessons = self._lessons
        stamp = tuple(map(stamp_of, (lessons.picks.path, lessons.groups.folder, lessons.updates.path)))
        if self._tallied[0] != stamp:
            self._tallied = stamp, self._count()
        return self._tallied[1]

    def _count(self) -> dict[str, Any]:
        groups, picks = self._lessons.groups.all(), self._lessons.picks.all()
        compared = [pick for pick in picks.values() if pick.question.asked == BLIND and not pick.choice.skip]
        consistent = tally.consistency(groups, picks)
        people = {
            who: {**told, "consistency": consistent[who]._asdict() if who in consistent else None}
            for who, told in tally.people(picks).items()
        }
        return {
            "answers": len(picks),
            "left": self._lessons.left(self.config.num_groups),
            "waiting_groups": len(self._lessons.waiting()),
            "comparisons": len(compared),
            "win_rate": tally.win_rate(groups, compared[: len(compared) // STEP * STEP])._asdict(),
            "people": people,
            "agreement": tally.agreement(groups, picks)._asdict(),
            "unreadable": self._lessons.picks.unreadable,
        }

    def _trainer(self) -> dict[str, Any]:
        running = self._run.state().name == RUNNING
        resume = "" if running else f"dgpo teach --resume {shlex.quote(str(self._run.folder))}"
        return {"running": running, "learning": running and self._is_learning(), "resume": resume}

    def _compares(self) -> bool:
        """Whether comparisons are drawn: of prompts that never train."""
        held_out = any(source != TRAINED for source in self.config.eval_prompts.values())
        return self.config.human.blind_every > 0 and held_out

    def _is_learning(self) -> bool:
        """Whether an update has begun whose row is not logged yet."""
        updates = self._lessons.updates.all()
        return bool(updates) and updates[-1].iteration >= (self._run.known().tail.iteration or 0)

    def _why(self) -> str:
        groups, state = self._lessons.groups, self._run.state()
        gone = [group.number for group in self._lessons.unanswered() if not groups.is_whole(group.number)]
        if gone and state.name != RUNNING:  # who trains draws others in their place
            names = ", ".join(f"{number:06d}" for number in gone[:5])
            return f"pictures are gone from {groups.folder}: {names}. Put them back; nobody is asked about these groups"
        if groups.damaged and state.name != RUNNING:
            return f"{next(iter(groups.damaged.values()))}. Nobody is asked about this group"
        if state.name == FINISHED:
            return f"the run is finished {state.why}, and all its groups are answered; no more are drawn"
        if state.name != RUNNING:
            return f"no process trains, and all groups that were drawn are answered. The run {state.name} {state.why}"
        if self._is_learning():
            return "the model learns from the answers; new groups follow"
        if self._lessons.waiting():
            return "others have all groups that are drawn; more follow once some are answered"
        return "the next group is being drawn"


def config_of(run: Run) -> Config:
    """The config of a run. Raises UserError where people do not teach it, or this version cannot read it."""
    known = run.known()
    if known.problem:
        raise UserError(known.problem)
    if not run.is_taught():
        rewards = ", ".join(map(str, known.config.get("rewards") or [])) or "nothing"
        raise UserError(
            f"the run {run.name} is not taught by people: its rewards are {rewards}. dgpo teach MODEL starts one"
        )
    try:
        return load_yaml(run.folder / "config.yaml")
    except UserError as error:
        version = run.other_version()
        raise UserError(
            f"the run {run.name} cannot be taught: {error}" + (f" ({version})" if version else "")
        ) from error


def id_of(question: Question) -> str:
    """What names a question in addresses and answers."""
    return str(question.group) if question.asked in (TRAIN, BLIND) else f"{question.group}-{question.asked}"


def as_drawn(choice: Choice, order: list[int]) -> Choice:
    """An answer to pictures in this order, by the pictures' own numbers."""
    ranks = dict(zip(order, choice.ranks))
    return _renumbered(choice, lambda place: order[place], [ranks[picture] for picture in sorted(ranks)])


def as_shown(choice: Choice, order: list[int]) -> Choice:
    """The other way round."""
    return _renumbered(choice, order.index, [choice.ranks[picture] for picture in order] if choice.ranks else [])


def _renumbered(choice: Choice, number: Any, ranks: list[int]) -> Choice:
    good, bad = (tuple(sorted(map(number, marked))) for marked in (choice.good, choice.bad))
    return choice._replace(good=good, bad=bad, ranks=tuple(ranks))
