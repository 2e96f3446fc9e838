"""Writes the tables of time to score into the pages that show them, from the raw results: python benchmarks/tables.py.

A table stands between <!-- table: NAME --> and <!-- end of table -->. What else the pages say is written by hand.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dgpo.bench.curves import DIVERSITY, SCORE, Curve, Reached, Row, curve_of, reached, read_rows
from dgpo.bench.out_of_domain import out_of_domain
from dgpo.bench.plan import CONTENDERS, GUIDANCE, Setting
from dgpo.bench.run import KEPT, SEARCHED, SEARCHED_DIVERSITY, best_lr, late_score, load, results

HERE = Path(__file__).parent
PAGES = tuple(HERE.parent / name for name in ("README.md", "docs/algorithms.md", "benchmarks/README.md"))
TARGETS = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
FEWER = (0.6, 0.7, 0.8)
RANKED = 0.6  # the score whose cost orders the contenders
MARK = " ⚠"
NOTHING = "No results yet."
TABLE = re.compile(r"(<!-- table: (.+?) -->\n)(?:(?!<!-- table: ).)*?(<!-- end of table -->)", re.DOTALL)


def filled(page: str, out: Path = HERE) -> str:
    """The page with its tables as the results in OUT/results/time_to_score have them."""
    begun, whole = page.count("<!-- table: "), len(TABLE.findall(page))
    if begun != whole:
        raise ValueError(f"{begun} tables begin and {whole} end: <!-- end of table --> is missing")
    return TABLE.sub(lambda found: f"{found[1]}\n{_named(found[2], out)}\n\n{found[3]}", page)


def _named(name: str, out: Path) -> str:
    """The table of a name such as `searches, plain`."""
    table, _, asked = name.partition(", ")
    setting: Setting | None = next((setting for setting in GUIDANCE if setting == asked), None)
    if table not in TABLES or setting is None:
        raise ValueError(f"no table is named {name!r}; tables: {', '.join(TABLES)}; settings: {', '.join(GUIDANCE)}")
    return TABLES[table](out, setting)


def searches(out: Path, setting: Setting) -> str:
    """Strict score of every rate of the searches; the best is bold."""
    found = {name: _tried(out, "search", f"{name}-{setting}-lr*.json") for name in CONTENDERS}
    rates = sorted({rate for tried in found.values() for rate in tried})
    return _table(
        ["", "thousand forwards", *(f"{rate:g}" for rate in rates)],
        [[f"`{name}`", *_searched(out, setting, name, tried, rates)] for name, tried in found.items() if tried],
    )


def _searched(
    out: Path, setting: Setting, name: str, tried: dict[float, dict[str, Any]], rates: Sequence[float]
) -> Iterator[str]:
    ended = {rate: run["evaluations"] for rate, run in tried.items() if run["evaluations"]}
    best = best_lr(out, name, setting, sorted(tried)) if ended else None
    yield _thousands(statistics.median(evaluations[-1]["forwards"] for evaluations in ended.values())) if ended else ""
    for rate in rates:
        if rate in ended:
            first, *_, last = ended[rate]
            mark = MARK if last[SEARCHED_DIVERSITY] < KEPT * first[SEARCHED_DIVERSITY] else ""
            yield _bold(_score(last[SEARCHED]), rate == best) + mark
        else:
            yield "diverged" if rate in tried else ""


def rates(out: Path, setting: Setting) -> str:
    """The first seed's runs at full length that settle each contender's rate; the best is bold."""
    rows = []
    for name in CONTENDERS:
        tried = _tried(out, "halved", f"{name}-{setting}-seed*-lr*.json")
        late = {rate: late_score(run) for rate, run in tried.items()}
        best = max(late, key=lambda rate: late[rate], default=None)
        for rate, run in sorted(tried.items(), reverse=True):
            told = ["diverged", *[""] * 3]
            if run["evaluations"]:
                told = [_bold(_score(late[rate]), rate == best), *_end([curve_of(run["evaluations"])])]
            if rate == best == min(tried):
                told[0] += ", half of it to come"
            rows.append([f"`{name}`", f"{rate:g}", *told])
    return _table(["", "rate", "rollouts, last fifth", "strict at the end", "diversity", "crispness"], rows)


def reach(out: Path, setting: Setting) -> str:
    """What each contender takes to each score, and how it ends."""
    return _reach(out, setting, TARGETS)


def summary(out: Path, setting: Setting) -> str:
    """The same with fewer scores."""
    return _reach(out, setting, FEWER)


def _reach(out: Path, setting: Setting, targets: Sequence[float]) -> str:
    rows = sorted((row for row in read_rows(out) if row.setting == setting), key=_rank)
    return _table(
        ["", "seeds", *map(_score, targets), "strict at the end", "diversity", "crispness"],
        [
            [f"`{row.name}`", str(len(row.curves)), *(_cost(row, target) for target in targets), *_end(row.curves)]
            for row in rows
        ],
    )


def _rank(row: Row) -> tuple[float, float]:
    return statistics.median(_costs(row, RANKED)), -statistics.fmean(curve.scores[SCORE][-1] for curve in row.curves)


def _costs(row: Row, target: float) -> list[float]:
    """Each seed's forwards to a score; infinite where it never got there."""
    return [hit.forwards if (hit := reached(curve, target)) else math.inf for curve in row.curves]


def _cost(row: Row, target: float) -> str:
    """Median and range of the forwards to a score, in thousands; `never` stands for seeds that did not get there."""
    hits: list[Reached] = [hit for curve in row.curves if (hit := reached(curve, target))]
    mark = MARK if any(hit.uniform for hit in hits) else ""
    return _ranged(_costs(row, target), _thousands) + mark


def _end(curves: Sequence[Curve]) -> Iterator[str]:
    """Last strict scores, change of diversity in percent, change of crispness."""
    yield _ranged([curve.scores[SCORE][-1] for curve in curves], _score)
    for name, told in ((DIVERSITY, _percent), ("crispness", _change)):
        ends = [(scores[0], scores[-1]) for curve in curves if (scores := curve.scores.get(name))]
        yield told(ends) if ends else "–"


def _percent(ends: Sequence[tuple[float, float]]) -> str:
    """-15 %"""
    return f"{round(100 * (statistics.fmean(last / first for first, last in ends) - 1)):+d} %"


def _change(ends: Sequence[tuple[float, float]]) -> str:
    """+.01"""
    change = round(statistics.fmean(last - first for first, last in ends), 2)
    return f"{'+' if change > 0 else ''}{_score(change)}"


def outside(out: Path, setting: Setting) -> str:
    """Out of domain, at one score on seen prompts; who does not reach it is left out."""
    found = [row for row in read_rows(out) if row.setting == setting]
    table = out_of_domain(found, _score) if found else None
    if table is None:
        return NOTHING
    rows = [row for row in table.rows if not row[2].startswith("not")]
    return _table(["", *table.head[1:]], [[_named_cell(row[0]), *row[1:]] for row in rows])


def _named_cell(name: str) -> str:
    return f"`{name}`" if name in CONTENDERS else f"the {name}"


def _tried(out: Path, folder: str, pattern: str) -> dict[float, dict[str, Any]]:
    """Rate -> result."""
    return {run["lr"]: run for run in map(load, sorted((results(out) / folder).glob(pattern)))}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) if rows else NOTHING


def _ranged(values: Sequence[float], told: Callable[[float], str]) -> str:
    """Their median and, of several, the smallest and the largest."""
    several = f" ({told(min(values))} to {told(max(values))})" if len({*values}) > 1 else ""
    return told(statistics.median(values)) + several


def _score(value: float) -> str:
    """.62"""
    return re.sub(r"^(-?)0(?=\.)", r"\1", f"{value:.2f}").replace("-.00", ".00")


def _thousands(forwards: float) -> str:
    return "never" if math.isinf(forwards) else f"{forwards / 1000:.0f}"


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


TABLES: dict[str, Callable[[Path, Setting], str]] = {
    "searches": searches,
    "rates": rates,
    "reach": reach,
    "summary": summary,
    "outside": outside,
}


def main() -> int:
    """Write the tables, and say which pages have changed."""
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
        print(f"{path}: {'as before' if after == before else 'changed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
