"""A small recorded search for the demo's settings, at a fixed number of network forwards, on the train list only.

    python benchmarks/search.py "optimizer.lr=3e-3" "optimizer.lr=5e-3 train_images=6 sampling.num_inference_steps=6"

Each candidate is a set of overrides of the recipe. It trains for as many iterations as `--forwards` pay for, a backward
counted as two, while its rate falls to a tenth, or as `optimizer.decay_steps` among the overrides says. Then three
pictures of every prompt of the train list are judged, by ten solver steps. Appends a line with settings, scores, curve
and environment of each to benchmarks/results/search_forwards.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dgpo.bench.run import lasting
from dgpo.config import Config, save_yaml
from dgpo.recipes import recipe
from dgpo.run import folder as runfolder
from overrides import overridden

RESULTS = Path(__file__).parent / "results"
KEPT = ("train/score/shapes_strict", "train/forwards", "train/grad_norm", "train/kl", "time/elapsed")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("candidates", nargs="+")
    options.add_argument("--recipe", default="tiny")
    options.add_argument("--forwards", type=int, default=57_600)
    options.add_argument("--seed", type=int, default=100)
    options.add_argument("--dtype", default="bf16")
    options.add_argument("--note", default="")
    given = options.parse_args()
    for candidate in given.candidates:
        with tempfile.TemporaryDirectory() as folder:
            config = candidate_config(given.recipe, candidate, given.forwards, given.seed, given.dtype)
            run = train(config, Path(folder))
            row = {"recipe": given.recipe, "overrides": candidate, "forwards": given.forwards, "seed": given.seed}
            row |= {"note": given.note, **outcome(run), "environment": runfolder.conditions()}
        with open(RESULTS / "search_forwards.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            candidate, {name: round(row["scores"][f"eval/train/{name}"], 3) for name in ("shapes_strict", "diversity")}
        )


def candidate_config(name: str, overrides: str, forwards: int, seed: int, dtype: str) -> Config:
    """The recipe with the overrides, as long as the forwards pay for, judged on its train list."""
    base = recipe(name)
    given = overridden(base, overrides.split())
    config = lasting(given, forwards)
    if "optimizer.decay_steps=" in overrides:
        config = replace(config, optimizer=given.optimizer)
    return replace(
        config,
        seed=seed,
        dtype=dtype,
        eval_every=config.iterations,
        eval_prompts={"train": str(base.prompts)},
        eval_images_per_prompt=3,
        checkpoint_every=0,
        num_samples=0,
        noise_scale_every=0,
        report=False,
        sampling=replace(config.sampling, eval_num_inference_steps=10),
    )


def train(config: Config, folder: Path) -> Path:
    """Run it in a process of its own; returns the run folder."""
    stored, run = folder / "candidate.yaml", folder / "run"
    save_yaml(config, stored)
    command = [sys.executable, "-m", "dgpo", "train", str(stored), "--out", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def outcome(run: Path) -> dict[str, Any]:
    """The scores before and after, the curve of the rollouts, and the resolved config."""
    record = runfolder.record(run)
    first, last = (
        next(r for r in rows if "eval/train/reward" in r) for rows in (record["metrics"], record["metrics"][::-1])
    )
    curve = [
        {key: row[key] for key in ("iteration", *KEPT) if key in row} for row in record["metrics"] if KEPT[0] in row
    ]
    scores = {name: value for name, value in last.items() if name.startswith("eval/")}
    before = {name: value for name, value in first.items() if name.startswith("eval/")}
    return {"config": record["config"], "before": before, "scores": scores, "curve": curve}


if __name__ == "__main__":
    main()
