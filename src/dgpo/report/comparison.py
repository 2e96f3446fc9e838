"""`compare`: one page of several runs: their last scores, curves in the same charts, settings that differ, pictures.

The first run that is named is the one that the others are compared with: prompt by prompt where they share prompts and
noise, by the statistic with which a run compares its own evaluations (run/changes.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from dgpo.errors import UserError
from dgpo.report.changes import Change, kind
from dgpo.report.curves import FONT, Frame, Line, chart
from dgpo.report.log import Point, is_in_domain
from dgpo.report.marks import Marking, marking
from dgpo.report.pictures import MAX_PICTURES, Address, Row, embedded, picture_row
from dgpo.report.sections import flat
from dgpo.report.several import (
    Run,
    common_scores,
    common_sets,
    differences,
    different_noise,
    read_runs,
    same_rewards,
)
from dgpo.report.templates import template
from dgpo.report.words import number
from dgpo.run.metric_names import FORWARDS, EvalName
from dgpo.utils.files import whole

LONGEST = 16
"""Characters of a name that have room at a line's end."""
PLACES = ("out", "name")
"""Fields of every config that say nothing of what a run does."""


class Score(NamedTuple):
    """A row of the table: a score's last value in each run, and how the others differ from the first."""

    name: EvalName
    kind: str
    values: list[str]  # one of each run
    changes: list[Change | None]  # one of each run but the first; None where the two are not paired


class Curves(NamedTuple):
    """One score of all runs."""

    name: EvalName
    kind: str
    charts: list[tuple[str, Markup]]  # by what, and the chart


class Pictures(NamedTuple):
    """The last pictures of the first prompts."""

    cards: list[tuple[str, list[tuple[Run, Row]]]]  # prompt, its row of each run
    images_per_prompt: int
    prompts: int  # that the runs have pictures of, of which cards show the first
    marking: Marking | None


def compare(runs: Iterable[str | Path], out: str | Path = "compare.html") -> Path:
    """Write one page that compares the last scores, curves, settings and last pictures of runs, and return its path.

    runs: two run folders or more; the others are compared with the first
    out: a new HTML file
    """
    page = Path(out)
    if page.exists():
        raise UserError(f"{page} exists and is not replaced; choose another --out")
    text = render(read_runs([Path(run) for run in runs]))
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with whole(page) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {page}: {error}. Choose another --out") from error
    return page


def render(runs: Sequence[Run]) -> str:
    """The page's text."""
    return template("report", "comparison.html.j2").render(contents(runs))


def contents(runs: Sequence[Run], address: Address = embedded) -> dict[str, Any]:
    """What `comparison_sections.html.j2` shows. address: where the page loads pictures from."""
    sets = common_sets(runs)
    names = common_scores(runs, sets)
    return {
        "runs": runs,
        "notes": [*notes(runs, sets)],
        "scores": [*scores(runs, names)],
        "curves": [*curves(runs, names)],
        "settings": settings(runs),
        "pictures": pictures(runs, address),
        "same_noise": not any(different_noise(runs[0], run) for run in runs[1:]),
    }


def notes(runs: Sequence[Run], sets: Sequence[str]) -> Iterator[str]:
    """What a reader must know beside the numbers."""
    first, *others = runs
    for run in others:
        fields = different_noise(first, run)
        if fields:
            yield (
                f"{run.label} and {first.label} differ in {', '.join(fields)}. Their evaluations come from different "
                "noise, so no paired difference is shown."
            )
    left_out = dict.fromkeys(name for run in runs for name in run.sets if name not in sets)
    if left_out:
        yield f"Evaluation sets that not all runs have with the same prompts are left out: {', '.join(left_out)}."
    if not same_rewards(runs):
        yield "The runs are trained on different rewards, so their weighted sum, reward, is left out."


def scores(runs: Sequence[Run], names: Sequence[EvalName]) -> Iterator[Score]:
    """The last value of each score in each run."""
    first, *others = runs
    paired = [differences(first, run) for run in others]
    for name in names:
        values = [number(point.value) for run in runs if (point := run.last(name.key))]
        found = [_change(first, run, name, each) for run, each in zip(others, paired)]
        yield Score(name, kind(name.score, is_in_domain(name.score, first.config)), values, found)


def _change(first: Run, other: Run, name: EvalName, paired: Mapping[str, float]) -> Change | None:
    """From the first run to the other; without its interval, twice the standard error of the difference at most."""
    before, after = first.last(name.key), other.last(name.key)
    if before is None or after is None or different_noise(first, other):
        return None
    errors = [run.last(f"{name.key}/stderr") for run in (first, other)]
    noise = 2 * math.hypot(*(error.value for error in errors if error))
    low, high = (paired.get(f"{name.key}/change_{end}") for end in ("low", "high"))
    interval = None if low is None or high is None else (low, high)
    return Change(name, before, after, after, noise, interval, is_in_domain(name.score, first.config))


def curves(runs: Sequence[Run], names: Sequence[EvalName]) -> Iterator[Curves]:
    """Each score over iterations, network forwards and training time; one point of each run makes no curve."""
    forwards, many = _unit(max(run.log.forwards() or 0.0 for run in runs), _COUNTS)
    seconds, time = _unit(max(run.log.elapsed() or 0.0 for run in runs), _TIMES)
    axes: list[tuple[str, Callable[[Run, Point], float | None]]] = [
        ("iterations", lambda run, point: point.iteration),
        (f"{many}network forwards", lambda run, point: _there(run, point, FORWARDS, forwards)),
        (f"{time} of training", lambda run, point: _there(run, point, "time/elapsed", seconds)),
    ]
    for name in names:
        if max(len(run.log.series(name.key)) for run in runs) > 1:
            lines = [(f"over {label}", [_line(run, name, at) for run in runs]) for label, at in axes]
            charts = [
                (label, _chart(own, f"{name.score}, {label}")) for label, own in lines if any(o.points for o in own)
            ]
            yield Curves(name, kind(name.score, is_in_domain(name.score, runs[0].config)), charts)


_COUNTS = ((1_000_000, "millions of "), (1_000, "thousands of "), (1, ""))
_TIMES = ((3600, "hours"), (60, "minutes"), (1, "seconds"))


def _unit(longest: float, units: Sequence[tuple[int, str]]) -> tuple[int, str]:
    """The largest unit that an axis has at least three of, or the smallest; and its name."""
    return next((size, name) for size, name in units if longest >= 3 * size or size == 1)


def _there(run: Run, point: Point, key: str, unit: int) -> float | None:
    """What a metric was at an evaluation, in units of so many; None where it was not logged."""
    value = dict(run.log.series(key)).get(point.iteration)
    return None if value is None else value / unit


def _line(run: Run, name: EvalName, at: Callable[[Run, Point], float | None]) -> Line:
    points = [(place, point.value) for point in run.log.series(name.key) if (place := at(run, point)) is not None]
    label = run.label if len(run.label) <= LONGEST else f"…{run.label[1 - LONGEST :]}"
    return Line(points, run.colour, name=label, dashed=run.dashed)


def _chart(lines: Iterable[Line], label: str) -> Markup:
    shown = [line for line in lines if line.points]
    room = 16 + 0.6 * FONT * max(len(line.name) for line in shown)
    return chart(shown, label, share=None, frame=Frame(width=340, height=190, left=36, right=room, bottom=18))


def settings(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The fields of the configs that differ, with the value of each run."""
    each = [dict(flat(run.config)) for run in runs]
    fields = dict.fromkeys(field for config in each for field in config if field not in PLACES)
    rows = [(field, [config.get(field, "–") for config in each]) for field in fields]
    return [(field, values) for field, values in rows if len({*values}) > 1]


def pictures(runs: Sequence[Run], address: Address = embedded) -> Pictures | None:
    """The last pictures of the first prompts, which all runs have; None where the runs have none in common."""
    samples = [run.samples for run in runs if run.samples]
    if len(samples) < len(runs):
        return None
    k = min(some.images_per_prompt for some in samples)
    lists = zip(*(some.prompts[:: some.images_per_prompt] for some in samples))
    prompts = [same[0] for same in takewhile(lambda those: len({*those}) == 1, lists)]
    if not prompts:
        return None
    last = [max(some.iterations) for some in samples]
    marked_by = marking([some.scores[i] for some, i in zip(samples, last)], runs[0].config)
    shown = min(len(prompts), max(1, MAX_PICTURES // (k * len(runs))))
    cards = []
    for p, prompt in enumerate(prompts[:shown]):
        starts = [p * some.images_per_prompt for some in samples]
        rows = [picture_row(s, i, range(at, at + k), marked_by, address) for s, i, at in zip(samples, last, starts)]
        cards.append((prompt, [*zip(runs, rows)]))
    return Pictures(cards, k, len(prompts), marked_by)
