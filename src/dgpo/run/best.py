"""Which of a run's evaluations is the best: that of the highest trained reward, mean over the evaluation sets.

Of those without an alarm. Where all that rose above the first evaluation alarm, it is the highest of these: a run that
gained reward does not end with the weights it began with because a watched score gave way. Of equal ones the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dgpo.run.changes import ALARMS


class Standing(NamedTuple):
    """What one evaluation is judged by."""

    iteration: int
    score: float
    alarmed: bool

    def beats(self, other: Standing, first: float) -> bool:
        """Whether it is the better one. first: the score of the run's first evaluation"""
        return self._rank(first) > other._rank(first)

    def _rank(self, first: float) -> tuple[bool, bool, float]:
        return self.score > first, not self.alarmed, self.score


def standing(iteration: int, metrics: Mapping[str, float]) -> Standing | None:
    """That of an evaluation's metrics; None where they hold no reward."""
    rewards = [value for name, value in metrics.items() if _is_reward(name)]
    return Standing(iteration, sum(rewards) / len(rewards), bool(metrics.get(ALARMS))) if rewards else None


def best(standings: Iterable[Standing]) -> Standing | None:
    """The best of a run's evaluations, in their order; None where there are none."""
    first = found = None
    for each in standings:
        first = first or each
        found = each if found is None or each.beats(found, first.score) else found
    return found


def _is_reward(name: str) -> bool:
    return name.startswith("eval/") and name.split("/")[2:] == ["reward"]
