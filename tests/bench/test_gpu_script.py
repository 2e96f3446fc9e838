"""benchmarks/gpu.sh: what it asks `dgpo bench` for, how it ends, and the few files that results become."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import Trained
from waiting import until

from dgpo.bench.plan import Plan
from dgpo.bench.run import bench
from dgpo.plan.estimates import estimate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a script for bash")


def script(tmp_path: Path, *words: str, bench_does: str = "true", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run it with a stand-in for Python that prints its arguments and, as `dgpo bench`, does `bench_does`."""
    python = tmp_path / "python"
    python.write_text(f'#!/usr/bin/env bash\necho "python $*"\n[[ $1 != -m ]] || {bench_does}\n')
    python.chmod(0o755)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    places = {"PYTHON": str(python), "WORK": str(tmp_path / "work"), "OUT": str(tmp_path / "out")}
    return subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), *words],
        env={**kept, **places, **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["rael"], {}, "gpu.sh: there is no measurement 'rael'. Known: "),
        ([], {}, "gpu.sh: there is no measurement ''"),
        (["table"], {"DEVICE": "tpu"}, "gpu.sh: DEVICE=tpu is neither cuda nor cpu"),
    ],
)
def test_what_it_does_not_know_is_one_error(
    words: list[str], settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    ended = script(tmp_path, *words, **settings)
    assert ended.returncode == 2
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1
    assert not ended.stdout


def test_on_a_gpu_all_contenders_run_eight_at_once(tmp_path: Path) -> None:
    ended = script(tmp_path, "table")
    assert ended.returncode == 0, ended.stderr
    asked, condensed = (line.split() for line in ended.stdout.splitlines() if line.startswith("python"))
    assert asked[1:9] == ["-m", "dgpo", "bench", "--device", "cuda", "--jobs", "8", "--seeds"]
    assert "--only" not in asked
    assert condensed[2:] == [str(tmp_path / "work"), str(tmp_path / "out")]
    assert (tmp_path / "out" / "bench.log").read_text() == ended.stdout


def test_sizes_come_from_outside_and_rates_from_the_project_s_own_searches(tmp_path: Path) -> None:
    ended = script(tmp_path, "table", DEVICE="cpu", ONLY="awm", SEEDS="3 4", SEARCH="stored")
    assert "--only awm" in ended.stdout
    assert "--seeds 3 4" in ended.stdout
    assert "--search-forwards 57600 --rates 5e-4 1e-3 2e-3 4e-3 8e-3" in ended.stdout
    stored = {path.name for path in (BENCHMARKS / "results" / "time_to_score" / "search").glob("*.json")}
    assert {path.name for path in (tmp_path / "work").rglob("*.json")} == stored


def test_when_the_time_is_up_results_are_condensed_and_a_failure_is_told(tmp_path: Path) -> None:
    late = script(tmp_path, "table", LIMIT="1", bench_does="exec sleep 30")
    assert late.returncode == 0
    assert "The time is up; what is finished stays." in late.stdout
    assert "condense.py" in late.stdout
    failed = script(tmp_path, "table", bench_does="exit 1")
    assert failed.returncode == 1
    assert "condense.py" in failed.stdout


def imported(name: str) -> Any:
    """A script of benchmarks/ as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module(name)


def test_results_become_a_few_files(trained: Trained, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    bench(Plan(only=("awm",), seeds=(0,), out=str(work)))
    (work / "runs" / "awm-plain-seed0.log").write_text("it went well\n")
    (work / "runs" / "crd-plain-seed0.log").write_text("it\nexploded\n")
    assert imported("condense").main(work, out) == 0
    assert {path.name for path in out.iterdir()} == {
        "bench.html", "runs.json", "searches.json", "results.tar.gz", "logs.txt"
    }  # fmt: skip
    (run,) = json.loads((out / "runs.json").read_text())
    assert run["evaluations"][-1]["forwards"] > 0
    assert "metrics" not in run
    assert len(json.loads((out / "searches.json").read_text())) == 5
    assert (out / "logs.txt").read_text() == "== crd-plain-seed0\nit\nexploded\n"
    with tarfile.open(out / "results.tar.gz") as archive:
        assert "time_to_score/awm-plain-seed0.json" in archive.getnames()
    assert imported("condense").main(tmp_path / "nothing", tmp_path / "none") == 1, "no page"


@pytest.mark.slow
def test_the_measurement_at_real_size_runs_tiny_on_a_cpu(tmp_path: Path) -> None:
    places = {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work"), "PYTHON": sys.executable}
    ended = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), "real"],
        env={**os.environ, **places, "DEVICE": "cpu", "PARTS": "sd35m flux_dev", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-2000:]
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"sd35m.json", "flux_dev.json", "page.md", "real.log"}
    for part in ("sd35m", "flux_dev"):
        found = json.loads((out / f"{part}.json").read_text())
        planned = {**found["memory_by_phase"]["planned"], "encoding": 0}  # which happened before
        assert found["memory"]["iteration"] == pytest.approx(max(planned.values()), rel=0.2)
        assert min(found["images_per_second"]) > 0
        assert found["rounds"][0]["phases"].keys() >= {"time/rollout", "time/update"}
    assert "| update |" in (out / "page.md").read_text()


def test_what_was_not_measured_is_told_beside_what_was(tmp_path: Path) -> None:
    row = {"iteration": 10, "eval/seen/shapes": 0.5, "eval/seen/shapes/stderr": 0.1}
    machine = {"machine": {"gpus": ["H100"], "cpu": "EPYC"}}
    parts = {
        "tests": {"summary": "1 failed in 2 s", "failed": ["FAILED x"]},
        "sd35m": {"problem": "it was late"},
        "demo": {"seconds": 60, "environment": machine, "rows": [{"iteration": 1, "time/update": 2}, row]},
    }
    for name, found in parts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    page = [*imported("gpu_real").page(tmp_path)]
    for line in ("- FAILED x", "Not measured: it was late.", "| iteration | eval/seen/shapes |", "| 10 | 0.500 |"):
        assert line in page


def test_a_part_that_is_late_ends_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = imported("gpu_real")
    sleeper = tmp_path / "python"
    sleeper.write_text(f"#!/usr/bin/env bash\nsleep 60 &\necho $! > {tmp_path}/started\nwait\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    given = argparse.Namespace(out=tmp_path, work=tmp_path, device="cuda")
    assert not module._apart("demo", given, time.monotonic() + 3)
    assert json.loads((tmp_path / "demo.json").read_text()) == {"problem": "it was stopped after 3 s"}
    started = Path("/proc") / (tmp_path / "started").read_text().strip() / "stat"

    def ended() -> bool:
        try:
            return started.read_text().split()[2] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(ended)  # a kill takes a moment


@pytest.mark.slow
@pytest.mark.parametrize(("name", "billions"), [("sd35m", 2.24), ("flux_dev", 11.90)])
def test_the_shapes_are_the_published_ones(name: str, billions: float, tmp_path: Path) -> None:
    """On the meta device, where nothing is made; what `dgpo plan` reads of it counts the same."""
    module: Any = imported("real_shapes")
    pipeline = getattr(module, name)(torch.device("meta"))
    assert sum(p.numel() for p in pipeline.transformer.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
    assert {p.dtype for p in pipeline.transformer.parameters()} == {torch.bfloat16}
    module.save_configs(pipeline, tmp_path / name)
    config = imported("gpu_real").settings(name, "cuda", tmp_path / name)
    found = estimate(config, 1, False, "a red cat")
    assert not found.unknown
    sizes = {part.name: part.parameters for part in found.parts}
    assert sizes["transformer"] / 1e9 == pytest.approx(billions, abs=0.01)
    assert found.peak is not None
    assert found.peak < 70 * 2**30, "it fits on 80 GB"
