"""benchmarks/tables.py: the tables of time to score in the benchmarks' page."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from trained import Trained

from dgpo.bench.plan import Plan
from dgpo.bench.run import Job, bench, result_path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def tables() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("tables")


@pytest.fixture
def results(trained: Trained, tmp_path: Path) -> Path:
    """AWM with two seeds, which loses a fifth of its diversity; CRD with one, which rises less."""
    trained.diversity = lambda config: 0.8 if config.algorithm.__class__.__name__ == "AWM" else 1.0
    bench(Plan(only=("awm",), seeds=(0, 1), out=str(tmp_path)))
    trained.best = 4e-3
    bench(Plan(only=("crd",), seeds=(0,), rates=(2e-3,), out=str(tmp_path)))
    return tmp_path


def rows(table: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_pages_have_what_the_results_have(tables: Any) -> None:
    names = set()
    for path in tables.PAGES:
        page = path.read_text(encoding="utf-8")
        marked = tables.TABLE.findall(page)
        assert page.count("<!-- table: ") == len(marked) > 0
        assert tables.filled(page) == page, "python benchmarks/tables.py writes them"
        names |= {name.partition(", ")[0] for _, name, _ in marked}
    assert names == {*tables.TABLES}


def test_what_a_score_takes_is_marked_where_diversity_was_lost(tables: Any, results: Path) -> None:
    awm, crd = rows(tables.reach(results, "plain"))
    assert awm[:2] == ["`awm`", "2"]
    assert awm[2:4] == ["113", "152 ⚠"], "half of the rise costs a tenth, which is no mark"
    assert awm[-3:] == [".70", "-20 %", ".00"]
    assert crd[:4] == ["`crd`", "1", "230", "never"]
    assert crd[-3:] == [".55", "+0 %", ".00"]


def test_a_seed_that_never_gets_there_counts_in_the_median(tables: Any, results: Path, trained: Trained) -> None:
    for seed, best in ((1, 2e-3), (2, 1e-3)):  # the rate of 2e-3 is the best, or twice as much
        trained.best = best
        bench(Plan(only=("crd",), seeds=(seed,), rates=(2e-3,), out=str(results)))
    _, crd = rows(tables.reach(results, "plain"))
    assert crd[1:4] == ["3", "230 (111 to 230)", "never (151 to never)"]
    assert crd[-3] == ".55 (.55 to .70)"


def test_the_rate_of_a_search_is_bold(tables: Any, results: Path) -> None:
    (awm,) = rows(tables.searches(results, "plain"))
    assert awm[:2] == ["`awm`", "59"]
    assert awm[2:] == [".48 ⚠", ".55 ⚠", "**.70** ⚠", ".55 ⚠", ".48 ⚠"]


def test_the_rate_that_counts_is_bold(tables: Any, results: Path) -> None:
    assert rows(tables.rates(results, "plain")) == [
        ["`awm`", "0.002", "**.70**", ".70", "-20 %", ".00"],
        ["`awm`", "0.001", ".55", ".55", "-20 %", ".00"],
    ]


def test_a_rate_that_is_the_smallest_tried_is_not_settled(tables: Any, results: Path) -> None:
    result_path(Job("awm", "plain", 1e-3, 0, 0, halving=True), results).unlink()
    assert rows(tables.rates(results, "plain")) == [
        ["`awm`", "0.002", "**.70**, half of it to come", ".70", "-20 %", ".00"]
    ]


def test_rates_that_diverged_say_so(tables: Any, results: Path) -> None:
    for folder, name in (("search", "awm-plain-lr"), ("halved", "awm-plain-seed0-lr0.002")):
        for path in (results / "results" / "time_to_score" / folder).glob(f"{name}*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"evaluations": [], "metrics": []}))
    (awm,) = rows(tables.searches(results, "plain"))
    assert awm == ["`awm`", "", *["diverged"] * 5]
    assert rows(tables.rates(results, "plain"))[0] == ["`awm`", "0.002", "diverged", "", "", ""]


def test_who_does_not_reach_the_common_score_is_left_out(tables: Any, results: Path, trained: Trained) -> None:
    trained.best = 2e-3
    bench(Plan(only=("ram",), seeds=(0,), rates=(2e-3,), out=str(results)))
    base, *reached = rows(tables.outside(results, "plain"))
    assert base[:4] == ["the base model", "", ".40", ".40"]
    assert [row[:3] for row in reached] == [["`awm`", "2 of 2", ".70"], ["`ram`", "1 of 1", ".70"]]


def test_a_setting_without_results_has_none(tables: Any, results: Path) -> None:
    for table in tables.TABLES.values():
        assert table(results, "guided") == "No results yet."


@pytest.mark.parametrize("name", ["rates", "rates, steered", "reaches, plain"])
def test_a_table_of_another_name_is_refused(tables: Any, results: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"no table is named '{name}'"):
        tables.filled(f"<!-- table: {name} -->\n<!-- end of table -->", results)


def test_a_table_without_an_end_is_refused(tables: Any, results: Path) -> None:
    page = "<!-- table: rates, plain -->\nwords\n<!-- table: reach, plain -->\n<!-- end of table -->"
    with pytest.raises(ValueError, match="2 tables begin and 1 end"):
        tables.filled(page, results)


def test_only_what_is_between_the_marks_changes(tables: Any, results: Path) -> None:
    page = "before\n\n<!-- table: rates, plain -->\nold\n<!-- end of table -->\nafter\n"
    once = tables.filled(page, results)
    assert once.startswith("before\n\n<!-- table: rates, plain -->\n\n|")
    assert once.endswith("|\n\n<!-- end of table -->\nafter\n")
    assert "old" not in once
    assert tables.filled(once, results) == once
