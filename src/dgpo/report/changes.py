"""Every evaluation metric from its first evaluation to its last.

A change counts as one only if zero lies outside its paired interval over prompts (run/changes.py), and only if a
reader could see it in the printed digits. Where no interval is logged it counts beyond twice its standard error; before
and after share prompts and noise, so the standard error of two independent evaluations used there is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgpo.report.log import Log, Point, is_in_domain, shown_evals
from dgpo.report.words import from_to, number, signed
from dgpo.run.metric_names import EvalName

DRIFT = "drift"
"""The base model's denoising loss on the pictures, which is not 0 for its own. Any training moves it: its rise says how
far the pictures have moved from what the base model draws, and is neither better nor worse."""
KINDS = {"trained": "trained", "watched": "only watched", "distance": "the base model's loss on the pictures"}
"""What `kind` finds, in words."""


@dataclass(frozen=True)
class Change:
    """One evaluation metric's first, last and best value."""

    name: EvalName
    first: Point
    last: Point
    best: Point
    noise: float  # twice the standard error of the difference, 0 where not logged
    interval: tuple[float, float] | None  # of the difference, None where not logged
    in_domain: bool

    @property
    def delta(self) -> float:
        return self.last.value - self.first.value

    @property
    def size(self) -> float:
        return max(abs(self.first.value), abs(self.last.value))

    @property
    def clear(self) -> bool:
        """Whether it can be told from noise and seen in the printed digits."""
        seen = number(self.first.value, self.size) != number(self.last.value, self.size)
        low, high = self.interval or (self.delta - self.noise, self.delta + self.noise)
        return seen and not low <= 0 <= high

    @property
    def moved(self) -> int:
        """1 better, -1 worse, 0 neither or not clear."""
        return int(math.copysign(1, self.delta)) if self.clear and self.name.score != DRIFT else 0

    @property
    def kind(self) -> str:
        """Whether the run trains on it."""
        return kind(self.name.score, self.in_domain)

    @property
    def single(self) -> bool:
        """Evaluated once only, so that there is no before and after."""
        return self.first.iteration == self.last.iteration

    @property
    def where(self) -> str:
        return f"{self.name.score} on {self.name.eval_set}"

    @property
    def values(self) -> str:
        return number(self.last.value) if self.single else from_to(self.first.value, self.last.value)

    @property
    def difference(self) -> str:
        return signed(self.delta, self.size)

    @property
    def between(self) -> str:
        """The interval of the difference, empty where not logged."""
        ends = self.interval or ()
        return " to ".join(signed(end, max(map(abs, ends))) for end in ends)


def changes(log: Log, config: Mapping[str, Any]) -> list[Change]:
    """Every evaluation metric, per task ones included, trained ones first."""
    found = [_change(log, name, is_in_domain(name.score, config)) for name in shown_evals(log, config)]
    return sorted(found, key=lambda change: not change.in_domain)


def kind(score: str, in_domain: bool) -> str:
    """trained: the run earns it. watched: it is only measured. distance: its change is one from the base model."""
    return "distance" if score == DRIFT else "trained" if in_domain else "watched"


def headline(found: list[Change]) -> list[Change]:
    """The scores a verdict rests on: strict ones, else the single rewards, else whatever was evaluated."""
    whole = [change for change in found if not change.name.tag and change.name.score != DRIFT]
    strict = [change for change in whole if change.name.score.endswith("_strict")]
    chosen = strict or [change for change in whole if change.in_domain and change.name.score != "reward"] or whole
    return sorted(chosen, key=lambda change: change.name.score)


def _change(log: Log, name: EvalName, in_domain: bool) -> Change:
    points = log.series(name.key)
    errors = dict(log.series(f"{name.key}/stderr"))
    first, last = points[0], points[-1]
    noise = 2 * math.hypot(errors.get(first.iteration, 0.0), errors.get(last.iteration, 0.0))
    low, high = (dict(log.series(f"{name.key}/change_{end}")).get(last.iteration) for end in ("low", "high"))
    interval = None if low is None or high is None else (low, high)
    best = max(points, key=lambda point: point.value)
    return Change(name, first, last, best, noise, interval, in_domain)
