"""Scores out of domain, of all contenders at one and the same score in domain.

In domain is the strict score on `seen`: combinations that train, from other noise. Out of domain are combinations that
never train, kinds of prompts that never train, and the scores that no reward sees. They are read off each seed's
evaluations, by a straight line between two of them, where the score in domain first reaches the common one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dgpo.bench.curves import SCORE, SETS, WATCHED, Curve, Row, curve, reached
from dgpo.bench.plan import OTHER_KINDS

OUTSIDE: dict[str, list[str]] = {
    "unseen combinations": [f"eval/unseen/{SCORE}"],
    "unseen kinds": [f"eval/{name}/{SCORE}" for name in OTHER_KINDS],
    **{name: [f"eval/{split}/{name}" for split in SETS] for name in WATCHED if name != SCORE},
}
"""Column of the table -> the metrics whose mean it shows."""
STEP = 0.05


class Table(NamedTuple):
    """What every contender has out of domain at one score in domain."""

    score: float
    head: list[str]
    rows: list[tuple[str, ...]]


def out_of_domain(rows: Sequence[Row], as_text: Callable[[float], str] = "{:.3f}".format) -> Table | None:
    """The table at the highest multiple of STEP that all seeds of most contenders reach; None where that is no rise.

    as_text: how a score is written.
    """
    curves = {row.name: [_curve(run["evaluations"]) for run in row.runs] for row in rows}
    every = [each for own in curves.values() for each in own]
    score = _common(curves)
    if score <= statistics.fmean(each.scores[SCORE][0] for each in every):
        return None
    before = [{name: values[0] for name, values in each.scores.items()} for each in every]
    base = (
        "base model",
        "",
        as_text(statistics.fmean(each[SCORE] for each in before)),
        *_cells(before, as_text, spread=False),
    )
    head = ["contender", "seeds that reach it", "seen combinations", *OUTSIDE]
    return Table(score, head, [base, *(_row(name, own, score, as_text) for name, own in curves.items())])


def _curve(evaluations: Sequence[dict[str, float]]) -> Curve:
    return curve(evaluations, {SCORE: [f"eval/seen/{SCORE}"], **OUTSIDE})


def _common(curves: Mapping[str, Sequence[Curve]]) -> float:
    least = [min(max(each.scores[SCORE]) for each in own) for own in curves.values()]
    most = sorted(least, reverse=True)[len(least) // 2]  # more than half of them have at least this
    return round(math.floor(most / STEP + 1e-9) * STEP, 2)


def _row(name: str, curves: Sequence[Curve], score: float, as_text: Callable[[float], str]) -> tuple[str, ...]:
    hits = [hit.scores for each in curves if (hit := reached(each, score))]
    seeds = f"{len(hits)} of {len(curves)}"
    if not hits:
        best = max(max(each.scores[SCORE]) for each in curves)
        return (name, seeds, f"not reached; best {as_text(best)}", *[""] * len(OUTSIDE))
    return (name, seeds, as_text(score), *_cells(hits, as_text))


def _cells(found: Iterable[Mapping[str, float]], as_text: Callable[[float], str], spread: bool = True) -> Iterator[str]:
    """Mean over seeds and their standard deviation; a dash where a result of an older version has no such list."""
    found = [*found]
    for name in OUTSIDE:
        values = [each[name] for each in found if name in each]
        apart = f" ± {as_text(statistics.stdev(values))}" if spread and len(values) > 1 else ""
        yield f"{as_text(statistics.fmean(values))}{apart}" if values else "–"
