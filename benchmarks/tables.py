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
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(page: str, out: Path = HERE) -> str:
    """The page with its tables as the results in OUT/results/time_to_score have them."""
    return TABLE.sub(lambda found: f"{found[1]}\n{_named(found[2], out)}\n\n{found[3]}", page)


def _named(name: str, out: Path) -> str:
    """The table of a name such as `searches, plain`."""
    table, _, asked = name.partition(", ")
    setting: Setting = next(setting for setting in GUIDANCE if setting == asked)
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
    best = best_lr(out, name, setting, sorted(tried))
    lengths = [run["evaluations"][-1]["forwards"] for run in tried.values() if run["evaluations"]]
    yield _thousands(statistics.median(lengths))
    for rate in rates:
        if rate not in tried:
            yield ""
        elif not tried[rate]["evaluations"]:
            yield "diverged"
        else:
            first, *_, last = tried[rate]["evaluations"]
            mark = MARK if last[SEARCHED_DIVERSITY] < KEPT * first[SEARCHED_DIVERSITY] else ""
            yield _bold(_score(last[SEARCHED]), rate == best) + mark


def rates(out: Path, setting: Setting) -> str:
    """The first seed's runs at full length that settled each contender's rate; the one that counts is bold."""
    taken = {row.name: row.runs[0]["lr"] for row in read_rows(out) if row.setting == setting}
    rows = []
    for name in CONTENDERS:
        for rate, run in sorted(_tried(out, "halved", f"{name}-{setting}-seed*-lr*.json").items(), reverse=True):
            if run["evaluations"]:
                told = [_bold(_score(late_score(run)), rate == taken.get(name)), *_end([curve_of(run["evaluations"])])]
            else:
                told = ["diverged", *[""] * 3]
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
    hits = [reached(curve, RANKED) for curve in row.curves]
    cost = statistics.median(hit.forwards if hit else math.inf for hit in hits)
    return cost, -statistics.fmean(curve.scores[SCORE][-1] for curve in row.curves)


def _cost(row: Row, target: float) -> str:
    """Median and range of the forwards to a score, in thousands; of how many seeds, where it is not all."""
    hits: list[Reached] = [hit for curve in row.curves if (hit := reached(curve, target))]
    if not hits:
        return "never"
    costs = [hit.forwards for hit in hits]
    several = f" ({_thousands(min(costs))} to {_thousands(max(costs))})" if len(costs) > 1 else ""
    share = "" if len(hits) == len(row.curves) else f"{len(hits)} of {len(row.curves)}: "
    return share + _thousands(statistics.median(costs)) + several + (MARK if any(hit.uniform for hit in hits) else "")


def _end(curves: Sequence[Curve]) -> Iterator[str]:
    """Last strict score with its deviation over seeds, change of diversity in percent, change of crispness."""
    scores = [curve.scores[SCORE][-1] for curve in curves]
    yield _score(statistics.fmean(scores)) + (f" ± {_score(statistics.stdev(scores))}" if len(scores) > 1 else "")
    kept = statistics.fmean(curve.scores[DIVERSITY][-1] / curve.scores[DIVERSITY][0] for curve in curves)
    yield f"{100 * (kept - 1):+.0f} %"
    change = statistics.fmean(curve.scores["crispness"][-1] - curve.scores["crispness"][0] for curve in curves)
    yield ("-" if change < -0.005 else "+" if change > 0.005 else "") + _score(abs(change))


def outside(out: Path, setting: Setting) -> str:
    """Out of domain, at one score on seen prompts; who does not reach it is left out."""
    table = out_of_domain([row for row in read_rows(out) if row.setting == setting])
    if table is None:
        return "No score is reached by most contenders."
    rows = [row for row in table.rows if row[2] and not row[2].startswith("not")]
    return _table(["", *table.head[1:]], [[_named_cell(row[0]), *map(_shorter, row[1:])] for row in rows])


def _shorter(cell: str) -> str:
    """Two digits of every number."""
    return re.sub(r"\d\.\d+", lambda found: _score(float(found[0])), cell)


def _named_cell(name: str) -> str:
    return f"`{name}`" if name in CONTENDERS else f"the {name}"


def _tried(out: Path, folder: str, pattern: str) -> dict[float, dict[str, Any]]:
    """Rate -> result."""
    return {run["lr"]: run for run in map(load, sorted((results(out) / folder).glob(pattern)))}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _score(value: float) -> str:
    """.62"""
    return f"{value:.2f}".removeprefix("0")


def _thousands(forwards: float) -> str:
    return f"{forwards / 1000:.0f}"


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
