"""What the results in OUT/results/time_to_score hold: each contender's scores over its cost, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dgpo.bench.plan import CONTENDERS, GUIDANCE, Setting
from dgpo.bench.run import KEPT, load, results

SCORE, DIVERSITY = "shapes_strict", "diversity"
SETS = ("seen", "unseen")
WATCHED = (SCORE, DIVERSITY, "crispness", "drift")


class Curve(NamedTuple):
    """Scores of one seed's evaluations over what training had cost until then."""

    iterations: list[float]
    forwards: list[float]  # of training so far, per image, a backward as two
    seconds: list[float]  # of training
    scores: dict[str, list[float]]


class Row(NamedTuple):
    """One contender over its seeds."""

    name: str
    setting: Setting
    curves: list[Curve]  # of means of the evaluation sets
    runs: list[dict[str, Any]]


class Reached(NamedTuple):
    """What one seed had when its score first reached a target."""

    iterations: float
    forwards: float
    seconds: float
    scores: dict[str, float]
    uniform: bool  # with a diversity more than a tenth below the base model's


def read_rows(out: str | Path) -> list[Row]:
    """The contenders with finished runs, in the plan's order, of each setting."""
    found: dict[tuple[str, Setting], list[dict[str, Any]]] = {}
    for path in sorted(results(out).glob("*.json")):
        run = load(path)
        found.setdefault((run["contender"], run["setting"]), []).append(run)
    return [
        Row(name, setting, [curve_of(run["evaluations"]) for run in found[name, setting]], found[name, setting])
        for setting in GUIDANCE
        for name in CONTENDERS
        if (name, setting) in found
    ]


def curve_of(evaluations: Sequence[dict[str, Any]]) -> Curve:
    """Scores over cost, means of the evaluation sets."""
    return curve(evaluations, {name: [f"eval/{split}/{name}" for split in SETS] for name in WATCHED})


def curve(evaluations: Sequence[dict[str, Any]], keys: Mapping[str, Sequence[str]]) -> Curve:
    """Name -> mean of its keys at every evaluation; a name that an evaluation lacks is left out."""
    scores = {
        name: [statistics.fmean(row[key] for key in some) for row in evaluations]
        for name, some in keys.items()
        if all(key in row for row in evaluations for key in some)
    }
    iterations, forwards, seconds = (
        [row[name] for row in evaluations] for name in ("iteration", "forwards", "seconds")
    )
    return Curve(iterations, forwards, seconds, scores)


def reached(curve: Curve, target: float) -> Reached | None:
    """Where the score first reached `target`, between evaluations by a straight line; None where it never did."""
    scores = curve.scores[SCORE]
    at = next((k for k, score in enumerate(scores) if score >= target), None)
    if at is None:
        return None
    share = 1.0 if at == 0 else (target - scores[at - 1]) / (scores[at] - scores[at - 1])

    def there(values: Sequence[float]) -> float:
        return values[max(at - 1, 0)] + share * (values[at] - values[max(at - 1, 0)])

    watched = {name: there(values) for name, values in curve.scores.items()}
    uniform = DIVERSITY in watched and watched[DIVERSITY] < KEPT * curve.scores[DIVERSITY][0]
    return Reached(there(curve.iterations), there(curve.forwards), there(curve.seconds), watched, uniform)
