"""The benchmark's page: what the results in OUT/results/time_to_score say, with plots over forwards and wall time."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from dgpo.bench.curves import DIVERSITY, SCORE, SETS, WATCHED, Row, curve_of, reached, read_rows
from dgpo.bench.out_of_domain import out_of_domain
from dgpo.bench.plan import CONTENDERS, GUIDANCE, Setting
from dgpo.bench.run import SEARCHED, SEARCHED_DIVERSITY, late_score, load, results
from dgpo.errors import UserError
from dgpo.report.curves import SERIES, Frame, Line, chart
from dgpo.report.templates import template
from dgpo.report.words import duration, plural

COLOURS = (*SERIES[1:], SERIES[0])
FRAME = Frame(width=400, height=210, left=36, right=108, bottom=18)
TARGETS = (0.6, 0.7, 0.8)
REFERENCE = "dgpo"


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
        machines=sorted({_machine(run) for row in rows for run in row.runs}),
    )
    page.write_text(text, encoding="utf-8")
    return page


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
        "equal": [(label, *_at_equal(rows, axis)) for axis, label in (("forwards", "forwards"), ("seconds", "time"))],
        "out_of_domain": out_of_domain(rows),
        "finals": [(row.name, f"{row.runs[0]['lr']:g}", _machines(row), *_finals(row)) for row in rows],
        "search": [*_search(out, setting, rows)],
        "halved": [*_halved(out, setting, rows)],
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
    reference = hits.get(REFERENCE, [])
    for row in rows:
        own, seeds = hits[row.name], len(row.curves)
        if not own:
            best = max(score for curve in row.curves for score in curve.scores[SCORE])
            yield (row.name, f"0 of {seeds}", f"not reached; best {best:.2f}", *[""] * 7)
            continue
        mark = " ⚠" if any(hit.uniform for hit in own) else ""
        yield (
            row.name,
            f"{len(own)} of {seeds}{mark}",
            _range([hit.forwards for hit in own], lambda forwards: f"{forwards:,.0f}"),
            _times([hit.forwards for hit in own], [hit.forwards for hit in reference]),
            f"{statistics.median(hit.iterations for hit in own) * _images(row):,.0f}",
            _range([hit.seconds for hit in own], duration) + mark,
            _times([hit.seconds for hit in own], [hit.seconds for hit in reference]),
            *(_mean([hit.scores[name] for hit in own if name in hit.scores]) for name in WATCHED[1:]),
        )


def _images(row: Row) -> int:
    """Images of an iteration."""
    config = row.runs[0]["config"]
    return config["num_groups"] * config["group_size"]


def _range(values: Sequence[float], told: Callable[[float], str]) -> str:
    """Their median and, of several, the smallest and the largest."""
    several = f" ({told(min(values))} to {told(max(values))})" if len(values) > 1 else ""
    return told(statistics.median(values)) + several


def _times(values: Sequence[float], reference: Sequence[float]) -> str:
    """How many times the reference's median theirs is; nothing where the reference has none, or needed nothing."""
    of_reference = statistics.median(reference) if reference else 0.0
    return f"{statistics.median(values) / of_reference:.1f}" if of_reference else ""


def _at_equal(rows: Sequence[Row], axis: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Head and rows of a table: scores and diversity after each quarter of the shortest run's cost."""
    cost = min(getattr(curve, axis)[-1] for row in rows for curve in row.curves)
    told = {"forwards": lambda at: f"{at:,.0f}", "seconds": duration}[axis]
    points = [cost * quarter / 4 for quarter in (1, 2, 3, 4)]
    head = ["contender", *(f"{told(at)}: {SCORE}, {DIVERSITY}" for at in points)]
    return head, [(row.name, *(_scores_at(row, axis, at) for at in points)) for row in rows]


def _scores_at(row: Row, axis: str, at: float) -> str:
    """Mean over seeds, of the score with its standard deviation."""
    values = {
        name: [float(np.interp(at, getattr(c, axis), c.scores[name])) for c in row.curves if name in c.scores]
        for name in (SCORE, DIVERSITY)
    }
    spread = f" ± {statistics.stdev(values[SCORE]):.3f}" if len(values[SCORE]) > 1 else ""
    return f"{statistics.fmean(values[SCORE]):.3f}{spread}, {_mean(values[DIVERSITY])}"


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


def _halved(out: str | Path, setting: Setting, rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Each full-length run of the first seed that a contender's rate was settled by."""
    for row in rows:
        found = [load(path) for path in (results(out) / "halved").glob(f"{row.name}-{setting}-seed*-lr*.json")]
        for run in sorted(found, key=lambda run: -run["lr"]):
            rate, taken = f"{run['lr']:g}", "yes" if run["lr"] == row.runs[0]["lr"] else ""
            if not run["evaluations"]:
                yield row.name, rate, "diverged", *[""] * 5
                continue
            scores = curve_of(run["evaluations"]).scores
            ends = [f"{scores[name][-1]:.3f}" if name in scores else "–" for name in WATCHED]
            yield row.name, rate, f"{late_score(run):.3f}", *ends, taken


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


def _machines(row: Row) -> str:
    """The card, or the processor, that each seed's run computed on."""
    return ", ".join(sorted({_computed_on(run) for run in row.runs}))


def _computed_on(run: dict[str, Any]) -> str:
    machine = run["environment"]["machine"]
    gpus = [] if run["config"]["device"] == "cpu" else machine["gpus"]
    return ", ".join(dict.fromkeys(gpus)) or machine.get("cpu") or "CPU"


def _machine(run: dict[str, Any]) -> str:
    """An NVIDIA H100, 16 CPU cores, 2 threads, torch 2.13.0."""
    machine = run["environment"]["machine"]
    threads = plural(machine["torch_threads"], "thread")
    return f"{_computed_on(run)}, {machine['cpus']} CPU cores, {threads}, torch {run['environment']['torch']}"


def _grid(out: str | Path, row: Row) -> str | None:
    """The first seed's last pictures as a data address."""
    path = results(out) / f"{row.name}-{row.setting}-seed{row.runs[0]['seed']}.png"
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.exists() else None
