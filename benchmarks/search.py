"""A small recorded search for the demo's settings, on the train list only.

    python benchmarks/search.py --minutes 5 "optimizer.lr=1e-4" "optimizer.lr=3e-4 num_groups=8"

Each candidate is a set of overrides of the recipe. It trains for the given minutes without evaluations; what counts
is the strict score of its last rollouts, which are drawn for prompts of the train list. Appends a line with settings,
curve and environment for each to benchmarks/results/search.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgpo.config import to_dict
from dgpo.run import folder as runfolder
from dgpo.run.trackers import read_metrics

RESULTS = Path(__file__).parent / "results"
KEPT = ("train/score/shapes_strict", "train/score/shapes", "train/grad_noise_scale", "train/grad_norm", "time/elapsed")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("candidates", nargs="+")
    options.add_argument("--recipe", default="tiny")
    options.add_argument("--minutes", type=float, default=5.0)
    options.add_argument("--seed", type=int, default=100)
    options.add_argument("--note", default="")
    given = options.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for candidate in given.candidates:
        row = {"recipe": given.recipe, "overrides": candidate, "minutes": given.minutes, "seed": given.seed}
        curve, config = run(given.recipe, candidate, given.minutes, given.seed)
        row |= {"note": given.note, "config": config, "curve": curve}
        row["environment"] = runfolder.conditions()
        with open(RESULTS / "search.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(candidate, summary(row["curve"]), flush=True)


def run(recipe: str, candidate: str, minutes: float, seed: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The kept metrics of every iteration that was finished in time, and the resolved config."""
    flags = [word for pair in candidate.split() for word in _flag(*pair.split("=", 1))]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "dgpo", "train", recipe, "--out", str(out), "--seed", str(seed)]
        command += ["--eval-every", "0", "--checkpoint-every", "0", "--iterations", "100000", *flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        started = time.time()
        while process.poll() is None and time.time() - started < minutes * 60:
            time.sleep(1)
        if process.poll():
            raise SystemExit(f"{candidate}: exit code {process.returncode}")
        process.terminate()
        process.wait()
        rows, config = read_metrics(out / "metrics.jsonl"), to_dict(replace(runfolder.stored_config(out), out=None))
    kept = [{"iteration": r["iteration"], **{key: r[key] for key in KEPT if r.get(key) is not None}} for r in rows]
    return kept, config


def summary(curve: list[dict[str, float]]) -> str:
    """Strict score of the first and the last fifth of the iterations."""
    scores = [row["train/score/shapes_strict"] for row in curve]
    fifth = max(1, len(scores) // 5)
    first, last = sum(scores[:fifth]) / fifth, sum(scores[-fifth:]) / fifth
    return f"strict {first:.3f} -> {last:.3f} in {len(scores)} iterations, {curve[-1]['time/elapsed']:.0f} s"


def _flag(name: str, value: str) -> list[str]:
    return [f"--{name.replace('_', '-')}", value]


if __name__ == "__main__":
    main()
