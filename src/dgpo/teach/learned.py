"""What was learned from, and what comes next: RUN/teach/updates.jsonl, a line an update.

    {"iteration": 3, "new": [12, 14, 15], "earlier": [2, 7]}

A group is learned from as new once; later updates may take it again. What a resumed run has not in its checkpoint it
learns again, so its lines are taken out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgpo.teach.groups import FOLDER, TRAIN, Group, Groups
from dgpo.teach.picks import Pick, Picks, mean_rewards
from dgpo.utils.files import whole
from dgpo.utils.people import HUMAN

NAME = "updates.jsonl"


@dataclass(frozen=True)
class Update:
    """One update and the groups that it took."""

    iteration: int  # counted from 0
    new: tuple[int, ...]
    earlier: tuple[int, ...]


class Updates:
    """The updates of a run."""

    def __init__(self, run: Path) -> None:
        self.path = run / FOLDER / NAME

    def all(self) -> list[Update]:
        """In their order. A line that a crash cut short is passed over: its iteration is done again."""
        found = []
        with suppress(OSError):
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError, KeyError):
                    told: dict[str, Any] = json.loads(line)
                    found.append(Update(**{**told, "new": tuple(told["new"]), "earlier": tuple(told["earlier"])}))
        return found

    def before(self, iteration: int) -> list[Update]:
        """Keep those before this iteration, which is the next one, and return them."""
        kept = [update for update in self.all() if update.iteration < iteration]
        text = "".join(map(_line, kept))
        if self.path.exists() and self.path.read_bytes() != text.encode():  # or the next line follows a cut one
            with whole(self.path) as unfinished:
                unfinished.write_text(text, encoding="utf-8")
        return kept

    def add(self, update: Update) -> None:
        """Note one."""
        self.path.parent.mkdir(exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(update))
            file.flush()
            os.fsync(file.fileno())


def _line(update: Update) -> str:
    return json.dumps(asdict(update)) + "\n"


class Lessons:
    """The answered groups of a run, and which of them teach something."""

    def __init__(self, run: Path, weights: Mapping[str, float]) -> None:
        """weights: the config's rewards"""
        self.groups, self.picks, self.updates = Groups(run), Picks(run), Updates(run)
        self._weights = weights

    def answered(self) -> dict[int, list[Pick]]:
        """number -> the answers, of every group to learn from that somebody has answered, in that order."""
        found: dict[int, list[Pick]] = {}
        groups = self.groups.all()
        for question, pick in self.picks.all().items():
            if (group := groups.get(question.group)) and group.kind == TRAIN:
                found.setdefault(question.group, []).append(pick)
        return found

    def next_number(self) -> int:
        """The number of the next group: one that no answer and no update knows, even where a folder was deleted."""
        learned = [number for update in self.updates.all() for number in update.new]
        return max(self.groups.last_number(), *(pick.group for pick in self.picks.all()), *learned, -1) + 1

    def unanswered(self) -> list[Group]:
        """Groups to learn from that nobody has answered."""
        answered = self.answered()
        return [group for number, group in self.groups.all().items() if group.kind == TRAIN and number not in answered]

    def waiting(self) -> list[Group]:
        """Those of them that can be asked about."""
        return [group for group in self.unanswered() if self.groups.is_whole(group.number)]

    def scores(self, number: int, picks: Sequence[Pick]) -> dict[str, list[float]] | None:
        """name -> one for each picture, with what people say; None where they had nothing to say."""
        group = self.groups.all()[number]
        rewards = mean_rewards(picks, group.size)
        return None if rewards is None else {**group.scores, HUMAN: rewards}

    def rewards(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sum."""
        own = {
            name: weight for name, weight in self._weights.items() if name in scores
        }  # a reward may be for some tags
        columns = zip(*(scores[name] for name in own))
        return [sum(weight * score for weight, score in zip(own.values(), column)) for column in columns]

    def teaching(self) -> list[int]:
        """Groups with a picture that earned more than another, in the order of their answers."""
        found = []
        for number, picks in self.answered().items():
            scores = self.scores(number, picks)
            if scores and len({*self.rewards(scores)}) > 1 and self.groups.has_latents(number):
                found.append(number)
        return found

    def left(self, num_groups: int) -> int:
        """Answers until the next update."""
        used = {number for update in self.updates.all() for number in update.new}
        new = sum(number not in used for number in self.teaching())
        return max(0, num_groups - new)
