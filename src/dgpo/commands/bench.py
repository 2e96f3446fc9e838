"""`dgpo bench`: compare the algorithms on the embedded task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

USAGE = {"dgpo bench [--only NAME ...] [...]": "compare the algorithms on the embedded task: hours"}
ABOUT = (
    "Train every algorithm on the embedded task from the same base model, and write a page that compares them.\n"
    "Runs that have their result are not run again; one that was stopped is continued."
)


def run(given: list[str]) -> int:
    """Run what is missing of the benchmark and write its page."""
    from dgpo.bench.plan import Plan
    from dgpo.commands.parse import parse
    from dgpo.recipes import recipe

    plan = parse(Plan(), list(_split_lists(given, ("--only", "--seeds"))), "dgpo bench", ABOUT)
    from dgpo.bench.overhead import measure_overhead
    from dgpo.bench.page import read_rows, write_page
    from dgpo.bench.run import bench

    if plan.overhead:
        results = Path(plan.out) / "results" / "overhead.json"
        measure_overhead(recipe(plan.overhead_recipe), plan.overhead_rounds, results)
        return 0
    finished = bench(plan)
    if finished or read_rows(plan.out):
        print(f"Page: {write_page(plan.out)}")
    return 0 if finished else 130


def _split_lists(given: Iterable[str], flags: Collection[str]) -> Iterator[str]:
    """Let a list come as "a,b" as well as "a b"."""
    flag = ""
    for word in given:
        flag = word if word.startswith("--") else flag
        yield from word.split(",") if flag in flags else (word,)
