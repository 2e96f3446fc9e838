"""The figures of an embedded task: a recipe over several seeds, each a whole `dgpo train` in its own process.

    python benchmarks/demo.py --recipe tiny --seeds 0 1 2

Writes benchmarks/results/RECIPE-seedN.json (config, environment, every row of metrics) as each seed ends, skips seeds
that are already there, and prints the table of benchmarks/results/RECIPE.json: scores before and after, their change,
the wall time to the first evaluation and in all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dgpo.data.prompts import load_prompts
from dgpo.run.folder import record
from dgpo.run.metric_names import eval_names

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", default="tiny")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given, overrides = options.parse_known_args()
    RESULTS.mkdir(exist_ok=True)
    runs = [_load_or_run(given.recipe, seed, overrides) for seed in given.seeds]
    table = summary(runs)
    (RESULTS / f"{given.recipe}.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


def _load_or_run(recipe: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    path = RESULTS / f"{recipe}-seed{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(_run(recipe, seed, overrides)) + "\n")
    return json.loads(path.read_text())


def _run(recipe: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "dgpo", "train", recipe, "--seed", str(seed), "--out", str(out), *overrides]
        started = time.time()
        first = None
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(f"[seed {seed}] {line}", end="", flush=True)
                if first is None and "evaluation after iteration 0" in line:
                    first = time.time() - started
        if process.returncode:
            raise SystemExit(f"seed {seed} ended with exit code {process.returncode}")
        return {
            "recipe": recipe,
            "seed": seed,
            "wall_seconds": time.time() - started,
            "first_evaluation_seconds": first,
            **record(out),
        }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Before, after and change of every score, mean and standard deviation over seeds."""
    table: dict[str, Any] = {
        "seeds": [run["seed"] for run in runs],
        "wall_seconds": [round(run["wall_seconds"], 1) for run in runs],
        "first_evaluation_seconds": [round(run["first_evaluation_seconds"], 1) for run in runs],
    }
    tags = {row["tag"] for row in load_prompts(runs[0]["config"]["prompts"]).metadata}
    names = eval_names({key: None for row in runs[0]["metrics"] for key in row})
    for key in (name.key for name in names if name.tag not in tags):
        evaluated = [[row[key] for row in run["metrics"] if key in row] for run in runs]
        before, after = [rows[0] for rows in evaluated], [rows[-1] for rows in evaluated]
        change = [b - a for a, b in zip(before, after, strict=True)]
        table[key.removeprefix("eval/")] = {"before": before, "after": after, "change": _spread(change)}
    return table


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


if __name__ == "__main__":
    main()
