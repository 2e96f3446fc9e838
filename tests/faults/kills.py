"""Runs are killed at random moments and resumed; each must end as the run that was never killed, bit for bit.

    python tests/faults/kills.py [KILLS] [SEED]     writes benchmarks/results/faults/kills.json

A run has evaluations, measures the noise scale and saves after every iteration, so that a kill may hit its start, an
evaluation, a rollout, an update, a save, or the export and the report at the end. Each run is killed until it has had
its share, then goes on to its end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
from runs import assert_same_run, run, save_pipeline, small, write_pictures

from dgpo import Config
from dgpo.run import checkpoint
from dgpo.utils.files import whole

ITERATIONS = 4
KINDS = ("lora", "full", "offline")
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "faults" / "kills.json"


def config_of(kind: str, model: Path, out: Path) -> Config:
    """A run of `kind` with everything on that a resume must bring back."""
    prompts = model.parent / "eval.txt"
    prompts.write_text("a cup\ngreen\n")
    config = small(
        model, out, finetune="full" if kind == "full" else "lora", iterations=ITERATIONS, eval_every=2,
        eval_prompts={"seen": str(prompts)}, eval_images_per_prompt=1, num_samples=1, noise_scale_every=2,
        keep_checkpoints=1,
    )  # fmt: skip
    return replace(config, offline=str(model.parent / "pictures")) if kind == "offline" else config


def moment(out: Path) -> str:
    """How far a run has come, by what its folder holds."""
    if not (out / "config.yaml").exists():
        return "before its folder was a run"
    if any((out / "checkpoints").glob(".partial-*")):
        return "in a save"
    newest = checkpoint.latest(out)
    if newest is None:
        return "before its first checkpoint"
    if checkpoint.iteration_of(newest) == ITERATIONS:
        return "after its last checkpoint"
    rows = (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0
    return "before or in its first evaluation" if rows == 0 else "amid training"


def attempt(processes: Any, config: Config, pause: float | None) -> bool:
    """Start or resume the run; kill it after `pause` seconds, or let it end. True if it was killed."""
    process = processes.Process(target=run, args=(config, (Path(config.out or "") / "config.yaml").exists()))
    started = time.monotonic()
    process.start()
    if pause is not None:
        process.join(max(0.0, pause - (time.monotonic() - started)))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{config.out}: the resumed run ended with code {process.exitcode}")
    return process.exitcode != 0


def trial(kind: str, kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """One run, killed so many times at most, beside one that is not."""
    processes = children.context()
    first = processes.Process(target=int)  # whose start takes longer than a run: it imports everything
    first.start()
    first.join()
    model = save_pipeline(folder / "pipeline" / "tiny")
    write_pictures(model.parent / "pictures")
    unhurt, hurt = (config_of(kind, model, folder / name) for name in ("unhurt", "hurt"))
    started = time.monotonic()
    attempt(processes, unhurt, None)
    length = time.monotonic() - started
    moments: Counter[str] = Counter()
    for _ in range(3 * kills):  # a kill that comes too late is none
        if moments.total() < kills and attempt(processes, hurt, rng.uniform(0.05, 0.8) * length):
            moments[moment(Path(hurt.out or ""))] += 1
    attempt(processes, hurt, None)
    try:
        assert_same_run(Path(hurt.out or ""), Path(unhurt.out or ""), ITERATIONS)
        problem = None
    except AssertionError as error:
        problem = str(error)[:200]
    return {"kind": kind, "kills": moments.total(), "moments": dict(moments), "problem": problem}


def trials(kills: int, seed: int) -> dict[str, Any]:
    """At least `kills` kills over runs of all kinds, up to four a run."""
    rng, rows = random.Random(seed), []
    while sum(row["kills"] for row in rows) < kills:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(trial(KINDS[len(rows) % len(KINDS)], 4, rng, Path(folder)))
            print(rows[-1], flush=True)
    moments = sum((Counter(row["moments"]) for row in rows), Counter())
    return {
        "seed": seed,
        "kills": moments.total(),
        "runs": len(rows),
        "runs_equal_to_never_killed": sum(row["problem"] is None for row in rows),
        "moments": dict(moments),
        "trials": rows,
    }


def main(kills: int = 20, seed: int = 0) -> int:
    found = trials(kills, seed)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with whole(RESULT) as unfinished:
        unfinished.write_text(json.dumps(found, indent=1) + "\n")
    return int(found["runs_equal_to_never_killed"] != found["runs"])


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
