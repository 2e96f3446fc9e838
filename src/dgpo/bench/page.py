"""The benchmark's page: what the results in OUT/results/time_to_score say, with plots over forwards and wall time."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from dgpo.bench.plan import CONTENDERS, GUIDANCE, Setting
from dgpo.bench.run import KEPT, SEARCHED, SEARCHED_DIVERSITY, load, results
from dgpo.errors import UserError
from dgpo.report.curves import SERIES, Frame, Line, chart
from dgpo.report.templates import template
from dgpo.report.words import duration, plural

SCORE, DIVERSITY = "shapes_strict", "diversity"
SETS = ("seen", "unseen")
WATCHED = (SCORE, DIVERSITY, "crispness", "drift")
COLOURS = (*SERIES[1:], SERIES[0])
FRAME = Frame(width=400, height=210, left=36, right=108, bottom=18)
TARGETS = (0.6, 0.7, 0.8)
REFERENCE = "dgpo"


class Curve(NamedTuple):
    """The evaluations of one seed. Scores are means of the evaluation sets."""

    forwards: list[float]  # of training so far, per image, a backward as two
    seconds: list[float]  # of training
    scores: dict[str, list[float]]  # each of WATCHED


class Row(NamedTuple):
    """One contender over its seeds."""

    name: str
    setting: Setting
    curves: list[Curve]
    runs: list[dict[str, Any]]


class Reached(NamedTuple):
    """What one seed had when its score first reached a target."""

    forwards: float
    seconds: float
    scores: dict[str, float]
    uniform: bool  # with a diversity more than a tenth below the base model's


def write_page(out: str | Path) -> Path:
    """Write OUT/bench.html from the results so far, and return its path."""
    rows = read_rows(out)
    if not rows:
        raise UserError(f"{results(out)} holds no finished run yet; dgpo bench --out {out} makes them")
    page = Path(out) / "bench.html"
    settings: list[Setting] = [setting for setting in GUIDANCE if any(row.setting == setting for row in rows)]
    text = template("bench", "bench.html.j2").render(
        sections=[_section(out, setting, [row for row in rows if row.setting == setting]) for setting in settings],
        guidance=GUIDANCE,
        score=SCORE,
        machines=sorted({_machine(run["environment"]) for row in rows for run in row.runs}),
    )
    page.write_text(text, encoding="utf-8")
    return page


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
    scores = {
        name: [statistics.fmean(row[f"eval/{split}/{name}"] for split in SETS) for row in evaluations]
        for name in WATCHED
        if all(f"eval/{split}/{name}" in row for row in evaluations for split in SETS)
    }
    return Curve([row["forwards"] for row in evaluations], [row["seconds"] for row in evaluations], scores)


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
    return Reached(there(curve.forwards), there(curve.seconds), watched, uniform)


def _section(out: str | Path, setting: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    """What the page says of one setting."""
    return {
        "setting": setting,
        "verdict": _verdict(rows),
        "plots": [
            (label, _plot(rows, axis, label))
            for axis, label in (("forwards", "thousand network forwards"), ("seconds", "minutes of training"))
        ],
        "targets": [(f"{target:.2f}", [*_target(rows, target)]) for target in TARGETS],
        "finals": [(row.name, f"{row.runs[0]['lr']:g}", *_finals(row)) for row in rows],
        "search": [*_search(out, setting, rows)],
        "grids": [(row.name, grid) for row in rows if (grid := _grid(out, row))],
    }


def _verdict(rows: Sequence[Row]) -> str:
    """The highest target that anybody reached with all seeds, and who was there with the fewest forwards."""
    for target in reversed(TARGETS):
        times = {row.name: [hit.forwards for curve in row.curves if (hit := reached(curve, target))] for row in rows}
        whole = {
            row.name: statistics.median(times[row.name]) for row in rows if len(times[row.name]) == len(row.curves)
        }
        if whole:
            first = min(whole, key=lambda name: whole[name])
            return (
                f"{first} reaches {target:.2f} with the fewest network forwards: {whole[first]:,.0f} (median of seeds)."
            )
    return f"No contender has reached {TARGETS[0]:.2f} with all of its seeds."


def _target(rows: Sequence[Row], target: float) -> Iterator[tuple[str, ...]]:
    """A row for each contender: what it took to reach the target, and what the pictures were like then."""
    hits = {row.name: [hit for curve in row.curves if (hit := reached(curve, target))] for row in rows}
    reference = [hit.forwards for hit in hits.get(REFERENCE, ())]
    for row in rows:
        own, seeds = hits[row.name], len(row.curves)
        if not own:
            best = max(score for curve in row.curves for score in curve.scores[SCORE])
            yield (row.name, f"0 of {seeds}", f"not reached; best {best:.2f}", *[""] * 5)
            continue
        forwards = statistics.median(hit.forwards for hit in own)
        spread = (
            f" ({min(h.forwards for h in own):,.0f} to {max(h.forwards for h in own):,.0f})" if len(own) > 1 else ""
        )
        factor = f"{forwards / statistics.median(reference):.1f}" if reference else ""
        yield (
            row.name,
            f"{len(own)} of {seeds}" + (" ⚠" if any(hit.uniform for hit in own) else ""),
            f"{forwards:,.0f}{spread}",
            factor,
            duration(statistics.median(hit.seconds for hit in own)),
            *(_mean([hit.scores[name] for hit in own if name in hit.scores]) for name in WATCHED[1:]),
        )


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}" if values else "–"


def _finals(row: Row) -> Iterator[str]:
    """First and last scores on each set, mean over seeds, with the deviation of the last."""
    for split in SETS:
        for name in WATCHED:
            key = f"eval/{split}/{name}"
            ends = [(run["evaluations"][0], run["evaluations"][-1]) for run in row.runs]
            values = [(first[key], last[key]) for first, last in ends if key in first and key in last]
            if not values:
                yield "–"
                continue
            first, last = zip(*values)
            spread = f" ± {statistics.stdev(last):.3f}" if len(last) > 1 else ""
            yield f"{statistics.fmean(first):.3f} → {statistics.fmean(last):.3f}{spread}"


def _search(out: str | Path, setting: Setting, rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Each rate of a contender's search with its score and diversity, and the rate that was taken."""
    for row in rows:
        found = [load(path) for path in (results(out) / "search").glob(f"{row.name}-{setting}-lr*.json")]
        tried = [
            f"{run['lr']:g}: " + (_searched(run["evaluations"][-1]) if run["evaluations"] else "diverged")
            for run in sorted(found, key=lambda run: run["lr"])
        ]
        if tried:
            yield row.name, "; ".join(tried), f"{row.runs[0]['lr']:g}"


def _searched(last: dict[str, Any]) -> str:
    return f"{last[SEARCHED]:.3f}, {last[SEARCHED_DIVERSITY]:.2f}"


def _plot(rows: Sequence[Row], axis: str, label: str) -> Markup:
    """Mean over seeds with its range, one line a contender."""
    unit = {"forwards": 1000, "seconds": 60}[axis]
    lines = []
    for row in rows:
        curves = [curve for curve in row.curves if len(curve.forwards) > 1]
        if not curves:
            continue
        at = np.linspace(0, min(getattr(curve, axis)[-1] for curve in curves), 60)
        values = np.array([np.interp(at, getattr(curve, axis), curve.scores[SCORE]) for curve in curves])
        band = [*zip(values.min(0).tolist(), values.max(0).tolist())]
        points = [*zip((at / unit).tolist(), values.mean(0).tolist())]
        lines.append(Line(points, _colour(row), band=band, name=row.name))
    return chart(lines, f"{SCORE} over {label}", share=True, frame=FRAME) if lines else Markup()


def _colour(row: Row) -> str:
    """The same on all plots and in every page."""
    return COLOURS[[*CONTENDERS].index(row.name) % len(COLOURS)]


def _machine(environment: dict[str, Any]) -> str:
    """2 CPU cores, 2 threads, no GPU, torch 2.13.0."""
    machine = environment["machine"]
    gpus, threads = ", ".join(machine["gpus"]) or "no GPU", plural(machine["torch_threads"], "thread")
    return f"{machine['cpus']} CPU cores, {threads}, {gpus}, torch {environment['torch']}"


def _grid(out: str | Path, row: Row) -> str | None:
    """The first seed's last pictures as a data address."""
    path = results(out) / f"{row.name}-{row.setting}-seed{row.runs[0]['seed']}.png"
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.exists() else None
