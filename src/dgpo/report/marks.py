"""Which of a picture's scores is shown beside it, and how.

A score that is only ever 0 or 1 says right or wrong and becomes a tick or a cross: the first of the trained scores, a
strict one (NAME_strict) before others. Where there is none the number of `reward` is shown as it is: no threshold is
made up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dgpo.report.grids import Scores
from dgpo.report.log import find, is_in_domain, reward_names
from dgpo.report.words import from_to, number

TICK, CROSS = "✓", "✗"


class Mark(NamedTuple):
    """What stands beside a picture. `tone` is good, bad or none."""

    text: str
    tone: str


class Marking(NamedTuple):
    """The score that marks every picture. `right_or_wrong`: it is 1 or 0."""

    score: str
    right_or_wrong: bool

    def mark(self, value: float) -> Mark:
        if math.isnan(value):
            return Mark("–", "none")
        if not self.right_or_wrong:
            return Mark(number(value), "none")
        return Mark(TICK, "good") if value else Mark(CROSS, "bad")

    def change(self, before: Sequence[float], after: Sequence[float]) -> str:
        """9 of 24 right → 17 of 24 right, or two means. NaN counts nowhere."""
        parts = [[value for value in values if not math.isnan(value)] for values in (before, after)]
        if self.right_or_wrong:
            return " → ".join(f"{sum(values):.0f} of {len(values)}" for values in parts)
        return from_to(*(sum(values) / max(1, len(values)) for values in parts))


def marking(scores: Iterable[Scores], config: Mapping[str, Any]) -> Marking | None:
    """How the pictures with these scores are marked; None where they have none."""
    each = list(scores)
    names = [name for name in each[0] if all(name in some for some in each)] if each else []
    trained = [name for name in names if _is_trained(name, config)]
    for name in sorted(trained, key=lambda name: not name.endswith("_strict")):
        if all(value in (0.0, 1.0) or math.isnan(value) for some in each for value in some[name]):
            return Marking(name, right_or_wrong=True)
    return Marking("reward", right_or_wrong=False) if "reward" in names else None


def _is_trained(score: str, config: Mapping[str, Any]) -> bool:
    """Whether the run is trained on a score, or on the reward whose part it is."""
    rewards = reward_names(find(config, "rewards"))
    part = any(score.startswith(f"{name}/") for name in rewards)
    return score != "reward" and (part or is_in_domain(score, config))
