"""Who is asked what: hands groups to people, takes their answers, takes them back.

A group to learn from is one person's at a time. Whoever asks again gets the same one, so a page may be loaded anew.
Comparisons come first, once there are any. Now and then a person gets a group again that they have answered, or one
that another has answered. An answer is looked up and kept while its file is held, so several servers get along.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dgpo.config import Human
from dgpo.errors import UserError
from dgpo.teach.groups import BLIND, TRAIN, Group
from dgpo.teach.learned import Lessons
from dgpo.teach.picks import AGAIN, ALSO, Choice, Question

LEASE = 600.0
"""Seconds for which a group that was handed out, and is not asked for again, is nobody else's."""
APART = 4
"""Answers, at least, between the two times that a person is asked the same."""


class Answered(UserError):
    """Somebody has answered this already."""


class Asked(NamedTuple):
    """A question and its group."""

    question: Question
    group: Group


@dataclass
class _Lease:
    asked: Asked
    since: float  # when it was first shown
    renewed: float


class Desk:
    """One run's. Its methods may be called from several threads."""

    def __init__(self, lessons: Lessons, human: Human) -> None:
        self.lessons, self._human = lessons, human
        self._leases: dict[str, _Lease] = {}
        self._lock = threading.Lock()

    def next(self, who: str) -> Asked | None:
        """What to ask this person; None: nothing is drawn yet."""
        with self._lock:
            now = time.monotonic()
            lease = self._leases.get(who)
            if lease is not None and self._is_open(lease.asked.question):
                lease.renewed = now
                return lease.asked
            self._leases.pop(who, None)
            asked = next(self._questions(who), None)
            if asked is not None:
                self._leases[who] = _Lease(asked, now, now)
            return asked

    def answer(self, question: Question, choice: Choice) -> None:
        """Keep an answer; it is on the disk when this returns. Raises Answered where there is one already."""
        with self._lock:
            group = self.lessons.groups.all().get(question.group)
            if group is None:
                raise UserError(f"there is no group {question.group}")
            lease = self._leases.get(question.who)
            seconds = time.monotonic() - lease.since if lease and lease.asked.question == question else 0.0
            with self.lessons.picks.adding() as file:
                self._require_open(question, choice)
                file.answer(question, choice, {"prompt": group.prompt, "images": group.images}, seconds)
            self.lessons.picks.all()
            self._leases.pop(question.who, None)

    def undo(self, who: str) -> Asked:
        """Take back this person's last answer, and ask it again."""
        with self._lock:
            with self.lessons.picks.adding() as file:
                own = [question for question in self.lessons.picks.all() if question.who == who]
                if not own:
                    raise UserError(f"{who} has no answer to take back")
                file.undo(own[-1])
            self.lessons.picks.all()
            asked = Asked(own[-1], self.lessons.groups.all()[own[-1].group])
            self._leases[who] = _Lease(asked, now := time.monotonic(), now)
            return asked

    def _require_open(self, question: Question, choice: Choice) -> None:
        """Refuse a second answer; the same one twice, of a click that was sent twice, is none."""
        standing = self.lessons.picks.all()
        other = standing.get(question)
        if other is None and question.asked in (TRAIN, BLIND):
            others = [pick for q, pick in standing.items() if q.group == question.group and q.asked == question.asked]
            other = others[0] if others else None
        if other is not None:
            whose = "you have" if other.question.who == question.who else f"{other.question.who} has"
            raise Answered(f"{whose} answered this group already; nothing was changed. Undo takes an own answer back")

    def _is_open(self, question: Question) -> bool:
        standing = self.lessons.picks.all()
        if not self.lessons.groups.is_whole(question.group) or question in standing:
            return False
        return question.asked in (AGAIN, ALSO) or not any(
            q.group == question.group and q.asked == question.asked for q in standing
        )

    def _questions(self, who: str) -> Iterator[Asked]:
        """What this person could be asked, best first."""
        groups, standing = self.lessons.groups.all(), self.lessons.picks.all()
        taken = self._taken_by_others(who)
        first_asked = {q.group for q in standing if q.asked in (TRAIN, BLIND)}

        def new(kind: str) -> Iterator[Asked]:
            for number, group in groups.items():
                free = group.kind == kind and number not in first_asked and number not in taken
                if free and self.lessons.groups.is_whole(number):
                    yield Asked(Question(number, kind, who), group)

        yield from new(BLIND)
        yield from self._repeated(who)
        yield from new(TRAIN)

    def _repeated(self, who: str) -> Iterator[Asked]:
        """A group that was answered before, where one is due."""
        standing = self.lessons.picks.all()
        own = [q for q in standing if q.who == who]
        for asked, every in ((AGAIN, self._human.repeat_every), (ALSO, self._human.share_every)):
            since = len(own) - max((i + 1 for i, q in enumerate(own) if q.asked == asked), default=0)
            if every and since >= every:
                candidates = self._own_earlier(own) if asked == AGAIN else self._of_others(who)
                for number in candidates:
                    question, group = Question(number, asked, who), self.lessons.groups.all().get(number)
                    if group and question not in standing and self.lessons.groups.is_whole(number):
                        yield Asked(question, group)
                        break

    def _own_earlier(self, own: list[Question]) -> list[int]:
        return [q.group for q in own[:-APART] if q.asked == TRAIN]

    def _of_others(self, who: str) -> list[int]:
        """Newest first: what is learned from next. One other answer to a group is enough."""
        standing = self.lessons.picks.all()
        mine = {q.group for q in standing if q.who == who}
        shared = {q.group for q in standing if q.asked == ALSO}
        found = [q.group for q in standing if q.asked == TRAIN and q.group not in mine | shared]
        return found[::-1]

    def _taken_by_others(self, who: str) -> set[int]:
        now = time.monotonic()
        return {
            lease.asked.question.group
            for name, lease in self._leases.items()
            if name != who and now - lease.renewed < LEASE and lease.asked.question.asked in (TRAIN, BLIND)
        }
