"""The benchmark's page: what the results in OUT/results/bench say, with plots over wall time and over images."""

from __future__ import annotations

import base64
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from dgpo.bench.plan import CONTENDERS, EXTRAS, LEARNING_RATES, METHODS, SEARCH_SEED, searcher
from dgpo.bench.run import late_rewards, load, results
from dgpo.config import from_dict
from dgpo.errors import UserError
from dgpo.report.curves import SERIES, Frame, Line, chart
from dgpo.report.templates import template
from dgpo.report.words import duration, plural
from dgpo.training.geometry import network_forwards

SCORE = "shapes_strict"
SETS = ("seen", "unseen")
HELD_OUT = ("crispness", "diversity", "drift")
COLOURS = (*SERIES[1:], SERIES[0])
FRAME = Frame(width=400, height=210, left=36, right=108, bottom=18)
TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9)


class Curve(NamedTuple):
    """The evaluations of one seed."""

    seconds: list[float]  # of training
    images: list[float]  # sampled for rollouts
    score: list[float]


class Row(NamedTuple):
    """One contender over its seeds."""

    name: str
    lr: float
    seeds: list[int]
    curves: dict[str, list[Curve]]  # evaluation set -> one of each seed
    runs: list[dict[str, Any]]


def write_page(out: str | Path) -> Path:
    """Write OUT/bench.html from the results so far, and return its path."""
    rows = read_rows(out)
    if not rows:
        raise UserError(f"{results(out)} holds no finished run yet; dgpo bench --out {out} makes them")
    page = Path(out) / "bench.html"
    text = template("bench", "bench.html.j2").render(
        plots=[
            (f"{split} prompts", label, _plot(rows, split, axis, label))
            for split in SETS
            for axis, label in (("seconds", "minutes of training"), ("images", "sampled images"))
        ],
        times=[(name, *cells) for name, cells in _times(rows)],
        finals=[(row.name, f"{row.lr:g}", *_finals(row)) for row in rows],
        score_names=[f"{split} {SCORE}" for split in SETS] + [f"{split} {name}" for split in SETS for name in HELD_OUT],
        costs=[(row.name, *_costs(row)) for row in rows],
        search=[(name, *cells, chosen) for name, cells, chosen in _search(out, rows)],
        grids=[(row.name, grid) for row in rows if (grid := _grid(out, row))],
        score=SCORE,
        verdict=_verdict(rows),
        dashed=any(row.name in EXTRAS for row in rows),
        targets=TARGETS,
        rates=[f"{rate:g}" for rate in LEARNING_RATES],
        machines=sorted({_machine(run["environment"]) for row in rows for run in row.runs}),
        minutes=sorted({f"{run['minutes']:g}" for row in rows for run in row.runs}),
    )
    page.write_text(text, encoding="utf-8")
    return page


def read_rows(out: str | Path) -> list[Row]:
    """The contenders with finished runs, in the plan's order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results(out).glob("*.json")):
        run = load(path)
        if run["seed"] != SEARCH_SEED:
            found.setdefault(run["contender"], []).append(run)
    return [_row(name, found[name]) for name in CONTENDERS if name in found]


def _row(name: str, runs: list[dict[str, Any]]) -> Row:
    curves = {split: [_curve(run, split) for run in runs] for split in SETS}
    return Row(name, runs[0]["lr"], [run["seed"] for run in runs], curves, runs)


def _curve(run: dict[str, Any], split: str) -> Curve:
    evaluated = [row for row in run["metrics"] if f"eval/{split}/{SCORE}" in row]
    per_iteration = run["config"]["num_groups"] * run["config"]["group_size"]
    return Curve(
        [row["time/elapsed"] for row in evaluated],
        [row["iteration"] * per_iteration for row in evaluated],
        [row[f"eval/{split}/{SCORE}"] for row in evaluated],
    )


def time_to(curve: Curve, target: float) -> float | None:
    """Seconds of training until the score first reached `target`, between evaluations by a straight line; or None."""
    for k, score in enumerate(curve.score):
        if score >= target:
            if k == 0:
                return curve.seconds[0]
            share = (target - curve.score[k - 1]) / (score - curve.score[k - 1])
            return curve.seconds[k - 1] + share * (curve.seconds[k] - curve.seconds[k - 1])
    return None


def _verdict(rows: Sequence[Row]) -> str:
    """The highest mean score at the end, and who has it."""
    ends = {row.name: [curve.score[-1] for curve in row.curves["seen"] if curve.score] for row in rows}
    means = {name: statistics.mean(scores) for name, scores in ends.items() if scores}
    if not means:
        return "No contender has been evaluated yet."
    best = max(means, key=lambda name: means[name])
    seeds = plural(len(ends[best]), "seed")
    return f"{best} ends with the highest {SCORE} on seen prompts: {means[best]:.3f}, mean over {seeds}."


def _times(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Time to each target on the seen prompts: the median over seeds and how many reached it."""
    table = []
    for row in rows:
        cells = []
        for target in TARGETS:
            reached = [t for curve in row.curves["seen"] if (t := time_to(curve, target)) is not None]
            cells.append(
                f"{duration(statistics.median(reached))} ({len(reached)}/{len(row.seeds)})" if reached else "–"
            )
        table.append((row.name, cells))
    return table


def _finals(row: Row) -> list[str]:
    """Last values of the scores: mean and deviation over seeds, with the first mean."""
    keys = [f"eval/{split}/{SCORE}" for split in SETS] + [f"eval/{s}/{name}" for s in SETS for name in HELD_OUT]
    cells = []
    for key in keys:
        values = [[metrics[key] for metrics in run["metrics"] if key in metrics] for run in row.runs]
        values = [v for v in values if v]
        if not values:
            cells.append("–")
            continue
        first, last = ([v[at] for v in values] for at in (0, -1))
        spread = f" ± {statistics.stdev(last):.3f}" if len(last) > 1 else ""
        cells.append(f"{statistics.mean(first):.3f} → {statistics.mean(last):.3f}{spread}")
    return cells


def _costs(row: Row) -> list[str]:
    """Network evaluations of an iteration; means over iterations and seeds of its seconds by phase and clip fraction.

    Last two of the base model: the variance of a step's gradient over the squared length of the true one, and what a
    second of training buys of the latter over the former, steps an iteration / (that ratio x seconds).
    """

    def mean(key: str) -> float:
        values = [m[key] for run in row.runs for m in run["metrics"] if m.get(key) is not None]
        return statistics.mean(values) if values else math.nan

    config = from_dict(row.runs[0]["config"])
    noise = noise_over_signal(row)
    signal = config.updates_per_rollout / (noise * mean("time/iteration"))
    keys = ("time/rollout", "time/reward", "time/update", "train/clip_fraction")
    cells = ["–" if math.isnan(value) else f"{value:.3g}" for value in (*map(mean, keys), noise, signal)]
    return [f"{network_forwards(config):,}", *cells]


def noise_over_signal(row: Row) -> float:
    """tr(Sigma) / (n |G|^2) of a step of n groups at the base model; nan if the seeds together saw no signal.

    Signal and noise of each seed's first measurement are averaged before they are divided, for one seed's signal may
    come out negative, and then its scale is not logged.
    """
    firsts = (next((m for m in run["metrics"] if m.get("train/grad_signal") is not None), None) for run in row.runs)
    measured = [_signal_and_noise(m, row.runs[0]["config"]["num_groups"]) for m in firsts if m is not None]
    signal, noise = map(sum, zip(*measured)) if measured else (0.0, 0.0)
    return noise / signal if signal > 0 else math.nan


def _signal_and_noise(metrics: dict[str, Any], groups: int) -> tuple[float, float]:
    """|G|^2 and tr(Sigma) / groups; a step's squared norm is their sum (core/noise_scale.py)."""
    signal, scale = metrics["train/grad_signal"], metrics.get("train/grad_noise_scale")
    return signal, metrics["train/grad_norm"] ** 2 - signal if scale is None else scale * signal / groups


def _search(out: str | Path, rows: Sequence[Row]) -> list[tuple[str, list[str], str]]:
    """The search for the learning rate: reward late in the run at each rate, and the rate that was taken."""
    folder, table = results(out), []
    for row in (row for row in rows if searcher(row.name) == row.name):
        if all((folder / f"{row.name}-lr{lr:g}-seed{SEARCH_SEED}.json").exists() for lr in LEARNING_RATES):
            earned = late_rewards(folder, row.name)
            table.append((row.name, [f"{earned[lr]:.3f}" for lr in LEARNING_RATES], f"{row.lr:g}"))
    return table


def _plot(rows: Sequence[Row], split: str, axis: str, label: str) -> Markup:
    """Mean over seeds with its range, one line a contender; those that change one setting of DGPO are dashed."""
    lines = []
    for row in rows:
        curves = [curve for curve in row.curves[split] if len(curve.score) > 1]
        if not curves:
            continue
        at = np.linspace(0, min(getattr(curve, axis)[-1] for curve in curves), 60)
        values = np.array([np.interp(at, getattr(curve, axis), curve.score) for curve in curves])
        points = [*zip((at / (60 if axis == "seconds" else 1)).tolist(), values.mean(0).tolist())]
        band = [*zip(values.min(0).tolist(), values.max(0).tolist())]
        # the range of every dashed line would bury the others
        lines.append(
            Line(
                points, _colour(row), band=() if row.name in EXTRAS else band, name=row.name, dashed=row.name in EXTRAS
            )
        )
    return chart(lines, f"{SCORE}, {split}, over {label}", share=True, frame=FRAME) if lines else Markup()


def _colour(row: Row) -> str:
    """The same on all plots and in every page."""
    group = EXTRAS if row.name in EXTRAS else METHODS
    return COLOURS[[*group].index(row.name) % len(COLOURS)]


def _machine(environment: dict[str, Any]) -> str:
    """2 CPU cores, 2 threads, no GPU, torch 2.13.0."""
    machine = environment["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    threads = plural(machine["torch_threads"], "thread")
    return f"{machine['cpus']} CPU cores, {threads}, {gpus}, torch {environment['torch']}"


def _grid(out: str | Path, row: Row) -> str | None:
    """The first seed's last pictures as a data address."""
    path = results(out) / f"{row.name}-lr{row.lr:g}-seed{row.seeds[0]}.png"
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.exists() else None
