"""`dgpo bench`: compare the algorithms on the embedded task."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from dgpo.errors import UserError

USAGE = {"dgpo bench [--only NAME ...] [...]": "compare the algorithms on the embedded task: hours"}
ABOUT = (
    "Train every algorithm on the embedded task from the same base model, and write a page that compares them.\n"
    "Runs that have their result are not run again; one that was stopped is continued.\n"
    "With --jobs N as many runs go on at once."
)


def run(given: list[str]) -> int:
    """Run what is missing of the benchmark and write its page."""
    from dgpo.bench.plan import Plan
    from dgpo.commands.parse import parse
    from dgpo.recipes import recipe

    plan = parse(Plan(), list(_split_lists(given, ("--only", "--seeds", "--rates"))), "dgpo bench", ABOUT)
    from dgpo.bench.overhead import measure_overhead
    from dgpo.bench.page import read_rows, write_page
    from dgpo.bench.parallel import Outcome, side_by_side
    from dgpo.bench.run import bench

    if plan.overhead:
        results = Path(plan.out) / "results" / "overhead.json"
        measure_overhead(recipe(plan.overhead_recipe), plan.overhead_rounds, results)
        return 0
    _require_device(plan.device)
    outcome = Outcome(not bench(plan), []) if plan.jobs == 1 else side_by_side(plan)
    if read_rows(plan.out):
        print(f"Page: {write_page(plan.out)}")
    for failure in outcome.failed:
        print(f"dgpo: {failure}", file=sys.stderr)
    return 130 if outcome.stopped else 1 if outcome.failed else 0


def _require_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda' needs a GPU that this torch can use, and there is none; take --device cpu")


def _split_lists(given: Iterable[str], flags: Collection[str]) -> Iterator[str]:
    """Let a list come as "a,b" as well as "a b"."""
    flag = ""
    for word in given:
        flag = word if word.startswith("--") else flag
        yield from word.split(",") if flag in flags else (word,)
