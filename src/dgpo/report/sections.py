"""What each section of the page shows, as plain bundles for the template; an empty one leaves its section out."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, cycle, groupby
from typing import Any, NamedTuple

from markupsafe import Markup

from dgpo.report.changes import DRIFT, Change, changes, headline, kind
from dgpo.report.curves import SERIES, Line, chart
from dgpo.report.health import HEALTH, NO_HEALTH, SHARES, help_line
from dgpo.report.log import Log, find, is_in_domain, only_reward, shown_evals
from dgpo.report.words import percentages
from dgpo.run.metric_names import EvalName

BUSY = "reward_busy"  # seconds in rewards, which pass while images are sampled: no phase of the wall time


class Panel(NamedTuple):
    """A chart with its words. `kind` is that of a score (changes.py), 'training' or ''."""

    title: str
    note: str
    kind: str
    svg: Markup


class Bar(NamedTuple):
    """One task's score before and after; the shares are of the chart's width."""

    change: Change
    before: float
    after: float


class Phase(NamedTuple):
    name: str
    seconds: float  # per iteration
    share: float
    start: float  # the shares before it, together
    percent: int  # they add up to 100
    colour: str


def heading(config: Mapping[str, Any], folder: str) -> dict[str, str]:
    """The run's name, model and algorithm (each empty where unknown) and its folder."""
    return {key: _name(find(config, key)) for key in ("name", "model", "algorithm")} | {"folder": folder}


def scores(log: Log, config: Mapping[str, Any]) -> list[tuple[str, list[Change]]]:
    """Every whole-set score, with its change on each set; those of the verdict first."""
    whole = [change for change in changes(log, config) if not change.name.tag]
    first = [change.name.score for change in headline(whole)]
    whole.sort(key=lambda change: (change.name.score not in first, not change.in_domain, change.name.score))
    return [(score, list(group)) for score, group in groupby(whole, key=lambda change: change.name.score)]


def set_colours(log: Log) -> dict[str, str]:
    """Each evaluation set's colour, by order of appearance."""
    names = dict.fromkeys(name.eval_set for name in log.evals())
    return {name: SERIES[1 + i % (len(SERIES) - 1)] for i, name in enumerate(names)}


def curves(log: Log, config: Mapping[str, Any]) -> list[Panel]:
    """Training rewards, then every evaluation score, trained ones first; one point makes no curve."""
    rewards = [f"score/{name}" for name in log.names("train/score/")]
    names = ["reward_mean", *(rewards if len(rewards) > 1 else [])]
    trained = [_train_panel(log, name, "Mean over the images of each rollout.", "training", config) for name in names]
    names = dict.fromkeys(name.score for name in shown_evals(log, config) if not name.tag)
    ordered = sorted(names, key=lambda score: not is_in_domain(score, config))
    return [panel for panel in [*trained, *(_eval_panel(log, config, score) for score in ordered)] if panel]


def health(log: Log, config: Mapping[str, Any]) -> list[Panel]:
    """The known health metrics in their order, then any other metric of the training rows."""
    shown = {"reward_mean", *(f"score/{name}" for name in log.names("train/score/")), *_off(config), *NO_HEALTH}
    names = [name for name in dict.fromkeys([*HEALTH, *log.names("train/")]) if name not in shown]
    panels = (_train_panel(log, name, help_line(name), "", config) for name in names)
    return [panel for panel in panels if panel]


def _off(config: Mapping[str, Any]) -> set[str]:
    """Metrics of what the run does not use."""
    algorithm = find(config, "algorithm")
    unclipped = isinstance(algorithm, Mapping) and algorithm.get("clip_range", 1.0) is None
    return {"clip_fraction"} if unclipped else set()


def tasks(log: Log, config: Mapping[str, Any]) -> list[tuple[EvalName, list[Bar]]]:
    """Per-task bars of the verdict's scores, one chart for each score and set.

    Where the reward has parts, these are the tasks, and other parts of a score are entries of a reward's dict.
    """
    found = changes(log, config)
    kinds = {name.tag for name in log.evals() if name.score == "reward" and name.tag}
    tagged = [change for change in found if change.name.tag and (not kinds or change.name.tag in kinds)]
    by_name = {change.name: [c for c in tagged if c.name[:2] == change.name[:2]] for change in headline(found)}
    return [(name, _bars(bars)) for name, bars in by_name.items() if bars]


def times(log: Log) -> list[Phase]:
    """The run's wall time, in seconds per iteration: the phases of an iteration, the rest of it, and evaluations.

    time/elapsed holds the iterations only. Evaluations lie between them and are added.
    """
    beside = ("iteration", "elapsed", "eval", BUSY)
    names = [name for name in log.names("time/") if name not in beside and "/" not in name]
    count = log.trained()
    if not names or not count:
        return []
    seconds = {name: _sum(log, f"time/{name}") / count for name in names}
    rest = (log.elapsed() or _sum(log, "time/iteration")) / count - sum(seconds.values())
    seconds |= {"other": rest} if rest > 0 else {}
    seconds |= {"evaluation": _sum(log, "time/eval") / count} if log.series("time/eval") else {}
    shares = [value / sum(seconds.values()) for value in seconds.values()]
    colours = cycle(SERIES[1:])
    return [
        Phase(name, value, share, start, percent, "--before" if name == "other" else next(colours))
        for (name, value), share, start, percent in zip(
            seconds.items(), shares, accumulate(shares, initial=0.0), percentages(shares)
        )
    ]


def reward_seconds(log: Log) -> float:
    """How long rewards were at work, per iteration; much of it lies within other phases, beside the sampling."""
    return _sum(log, f"time/{BUSY}") / max(1, log.trained())


def tables(tree: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A nested mapping as (heading, rows): the plain values first, then one table for each nested mapping."""
    plain = [(key, _text(value)) for key, value in tree.items() if not (isinstance(value, Mapping) and value)]
    nested = [(key, flat(value)) for key, value in tree.items() if isinstance(value, Mapping) and value]
    return ([("", plain)] if plain else []) + nested


def _sum(log: Log, key: str) -> float:
    return sum(point.value for point in log.series(key))


def _train_panel(log: Log, name: str, note: str, kind: str, config: Mapping[str, Any]) -> Panel | None:
    points, positive = log.series(f"train/{name}"), name == "grad_noise_scale"
    points = [point for point in points if point.value > 0] if positive else points
    if len(points) < 2:
        return None
    label = only_reward(config) or "reward" if name == "reward_mean" else name.removeprefix("score/")
    reference = find(config, "num_groups") if positive else None
    line = Line(points, "--train", smooth=True)
    svg = chart([line], label, log.series("time/elapsed"), name in SHARES, positive, reference)
    return Panel(label, note, kind, svg)


def _eval_panel(log: Log, config: Mapping[str, Any], score: str) -> Panel | None:
    keys = {name.eval_set: name.key for name in log.evals() if name.score == score and not name.tag}
    colours = set_colours(log)
    lines = [Line(log.series(key), colours[s], band=_errors(log, key)) for s, key in keys.items()]
    if max(len(line.points) for line in lines) < 2:
        return None
    note = (
        "The base model's denoising loss on these pictures. It is not 0 for its own; its rise says how far they have "
        "moved from what the base model draws. It is no reward."
        if score == DRIFT
        else "Mean over the evaluation prompts."
    )
    svg = chart(lines, score, log.series("time/elapsed"), share=None)
    return Panel(score, note, kind(score, is_in_domain(score, config)), svg)


def _errors(log: Log, key: str) -> list[tuple[float, float]]:
    """One standard error on either side of each value; nothing where none is logged."""
    errors = dict(log.series(f"{key}/stderr"))
    ends = [(value - errors.get(i, 0.0), value + errors.get(i, 0.0)) for i, value in log.series(key)]
    return ends if errors else []


def _bars(found: list[Change]) -> list[Bar]:
    values = [value for change in found for value in (change.first.value, change.last.value)]
    low, high = min([0.0, *values]), max([0.0, *values])
    width = 1.0 if low == 0 and high <= 1 else high - low
    return [Bar(c, (c.first.value - low) / width, (c.last.value - low) / width) for c in found]


def _name(value: Any) -> str:
    """A config entry's name, whether it is the name or a mapping that holds one."""
    if isinstance(value, Mapping):
        return next((str(value[key]) for key in ("name", "kind", "type", "path") if value.get(key)), "")
    return "" if value is None else str(value)


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as rows of (optimizer.lr, 0.003)."""
    rows = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        rows += flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", _text(value))]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(_text, value))
    return "–" if value in (None, "", {}) else str(value)
