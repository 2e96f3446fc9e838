"""Who is asked what: hands groups to people, takes their answers, takes them back.

A group to learn from is one person's at a time. Whoever asks again gets the same one, so a page may be loaded anew. A
page may also ask for what follows the question that it shows, and so loads its pictures while a person looks.
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
    before: Choice | None = None  # the answer that was taken back


@dataclass
class _Lease:
    asked: Asked
    since: float  # when it was first shown
    renewed: float


class Desk:
    """One run's. Its methods may be called from several threads."""

    def __init__(self, lessons: Lessons, human: Human) -> None:
        self.lessons, self._human = lessons, human
        self._leases: dict[str, list[_Lease]] = {}  # of each person, in the order in which they are shown
        self._lock = threading.Lock()

    def next(self, who: str, after: Question | None = None) -> Asked | None:
        """What to ask this person, or what to ask after that question; None: nothing is drawn yet."""
        with self._lock:
            leases = self._open_leases(who)
            self._keep_shown(after, leases)
            for lease in leases:
                if lease.asked.question != after:
                    return lease.asked
            asked = next((asked for asked in self._questions(who) if asked.question != after), None)
            if asked is None and after is None:
                asked = self._spare(who)
            if asked is not None:
                self._lease(asked, leases)
            return asked

    def answer(self, question: Question, choice: Choice) -> None:
        """Keep an answer; it is on the disk when this returns. Raises Answered where there is another one already."""
        with self._lock:
            group = self.lessons.groups.all().get(question.group)
            if group is None:
                raise UserError(f"there is no group {question.group}")
            leases = self._leases.get(question.who, [])
            seconds = next((time.monotonic() - own.since for own in leases if own.asked.question == question), 0.0)
            with self.lessons.picks.adding() as file:
                if not self._is_kept(question, choice):
                    self._require_open(question)
                    file.answer(question, choice, {"prompt": group.prompt, "images": group.images}, seconds)
            self.lessons.picks.all()
            rest = [lease for lease in leases if lease.asked.question != question]
            for lease in rest[:1]:
                lease.since = time.monotonic()
            self._leases[question.who] = rest

    def undo(self, who: str) -> Asked:
        """Take back this person's last answer, and ask it again before whatever they were asked."""
        with self._lock:
            with self.lessons.picks.adding() as file:
                own = [pick for question, pick in self.lessons.picks.all().items() if question.who == who]
                if not own:
                    raise UserError(f"{who} has no answer to take back")
                question = own[-1].question
                if not self.lessons.groups.is_whole(question.group):
                    raise UserError(
                        f"the last answer was to group {question.group}, whose pictures are gone, so that it cannot be "
                        f"asked again; nothing was changed. Put back {self.lessons.groups.folder}"
                    )
                file.undo(question)
            self.lessons.picks.all()
            asked = Asked(question, self.lessons.groups.all()[question.group], own[-1].choice)
            leases = self._open_leases(who)
            self._lease(asked, leases)
            leases.insert(0, leases.pop())
            return asked

    def _open_leases(self, who: str) -> list[_Lease]:
        """Those of this person that can still be answered, renewed. Those that others have forgotten are dropped."""
        now = time.monotonic()
        self._leases = {
            name: kept
            for name, leases in self._leases.items()
            if (kept := [lease for lease in leases if name == who or now - lease.renewed < LEASE])
        }
        own = self._leases[who] = [lease for lease in self._leases.get(who, []) if self._is_open(lease.asked.question)]
        for lease in own:
            lease.renewed = now
        return own

    def _keep_shown(self, shown: Question | None, leases: list[_Lease]) -> None:
        """Lease what a page shows, if nobody else has it: the server may have been started anew since."""
        known = [lease.asked.question for lease in leases]
        if shown is None or shown in known or not self._is_open(shown):
            return
        if shown.group not in self._taken_by_others(shown.who):
            self._lease(Asked(shown, self.lessons.groups.all()[shown.group]), leases)

    def _spare(self, who: str) -> Asked | None:
        """What another has for later, where nothing else is left."""
        for name, leases in self._leases.items():
            for lease in leases[1:]:
                asked = lease.asked
                if name != who and asked.question.asked in (TRAIN, BLIND) and self._is_open(asked.question):
                    leases.remove(lease)
                    return Asked(asked.question._replace(who=who), asked.group)
        return None

    @staticmethod
    def _lease(asked: Asked, leases: list[_Lease]) -> None:
        now = time.monotonic()
        leases.append(_Lease(asked, now, now))

    def _is_kept(self, question: Question, choice: Choice) -> bool:
        """Whether this is an answer that was sent twice, since its sender did not hear that it was kept."""
        pick = self.lessons.picks.all().get(question)
        return pick is not None and pick.choice == choice

    def _require_open(self, question: Question) -> None:
        """Refuse an answer where there is one, and a second opinion where there is no first."""
        standing = self.lessons.picks.all()
        first = [pick for q, pick in standing.items() if q.group == question.group and q.asked in (TRAIN, BLIND)]
        other = standing.get(question) or (first[0] if first and question.asked in (TRAIN, BLIND) else None)
        if other is not None:
            whose = "you have" if other.question.who == question.who else f"{other.question.who} has"
            raise Answered(f"{whose} answered this group already; nothing was changed. Undo takes an own answer back")
        earlier = [pick.question.who == question.who for pick in first]  # whether it is this person's
        if question.asked in (AGAIN, ALSO) and (question.asked == AGAIN) not in earlier:
            whose = question.who if question.asked == AGAIN else "another person"
            raise UserError(f"{whose} has not answered group {question.group}, so nobody is asked about it again")

    def _is_open(self, question: Question) -> bool:
        try:
            self._require_open(question)
        except UserError:
            return False
        return self.lessons.groups.is_whole(question.group)

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
            for name, leases in self._leases.items()
            for lease in leases
            if name != who and now - lease.renewed < LEASE and lease.asked.question.asked in (TRAIN, BLIND)
        }
