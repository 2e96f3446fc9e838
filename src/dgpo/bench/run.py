"""Runs the plan in pieces: a run that has its result is not run again, one that was cut short is continued.

OUT/results/bench/NAME-lrX-seedS.json   one finished run: config, environment, every row of metrics
OUT/results/bench/NAME-lrX-seedS.png    its pictures after the last evaluation, the same prompts and noise for all
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dgpo.bench.plan import CONTENDERS, LEARNING_RATES, SEARCH_SEED, Plan, config_of, searcher
from dgpo.config import Config
from dgpo.report.grids import read_samples
from dgpo.run import checkpoint
from dgpo.run import folder as runfolder
from dgpo.run.trackers import read_metrics
from dgpo.training.loop import train
from dgpo.utils.files import whole


class Job(NamedTuple):
    """One run of the benchmark."""

    contender: str
    lr: float
    seed: int
    minutes: float
    searches: bool  # for the learning rate: no evaluation
    decay_steps: int = 0  # over which the rate falls

    @property
    def name(self) -> str:
        return f"{self.contender}-lr{self.lr:g}-seed{self.seed}"


def bench(plan: Plan) -> bool:
    """Run what is missing; True where nothing is missing any more."""
    folder = results(plan.out)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for name in plan.names:
        for job in jobs(plan, name):
            spent = (time.monotonic() - started) / 60
            needs = job.minutes - _done(plan, job)
            if plan.budget_minutes is not None and spent + needs > plan.budget_minutes:
                hint = "call again to go on" if needs <= plan.budget_minutes else "it needs a larger one"
                print(f"{job.name}, {needs:.3g} minutes, would end after the budget of {plan.budget_minutes:g}; {hint}")
                return False
            if not _run(job, plan, folder):
                return False
    return True


def jobs(plan: Plan, name: str) -> Iterator[Job]:
    """The runs of one contender that have no result yet: the search first, then the seeds at the rate it found."""
    folder = results(plan.out)
    searches = [Job(searcher(name), lr, SEARCH_SEED, plan.search_minutes, True) for lr in LEARNING_RATES]
    yield from (job for job in searches if not _result_of(folder, job).exists())
    lr = best_lr(folder, name)
    if searcher(name) != name:  # an extra has its rate from another's search, but its own pace
        pace = Job(name, lr, SEARCH_SEED, plan.search_minutes, True)
        yield from (job for job in (pace,) if not _result_of(folder, job).exists())
    falls = steps_within(plan.minutes, folder, name, lr)
    finals = [Job(name, lr, seed, plan.minutes, False, falls) for seed in plan.seeds]
    yield from (job for job in finals if not _result_of(folder, job).exists())


def results(out: str | Path) -> Path:
    return Path(out) / "results" / "bench"


def best_lr(folder: Path, name: str) -> float:
    """The rate whose search run earned most late in it."""
    earned = late_rewards(folder, searcher(name))
    return max(earned, key=lambda lr: earned[lr])


def late_rewards(folder: Path, name: str) -> dict[float, float]:
    """Of each rate's search run: mean reward of the last third of the iterations that all of them made (train list).

    The same iterations have the same prompts, which matters more between them than the rate does.
    """
    rewards = {}
    for lr in LEARNING_RATES:
        rows = load(folder / f"{name}-lr{lr:g}-seed{SEARCH_SEED}.json")["metrics"]
        rewards[lr] = [row["train/reward_mean"] for row in rows if row.get("train/reward_mean") is not None]
    common = min(map(len, rewards.values()))
    first = common - max(1, common // 3)
    return {lr: statistics.mean(values[first:common]) if common else -math.inf for lr, values in rewards.items()}


def steps_within(minutes: float, folder: Path, name: str, lr: float) -> int:
    """Optimizer steps of so many minutes of training, at the iterations per second of its short run at this rate."""
    rows = load(folder / f"{name}-lr{lr:g}-seed{SEARCH_SEED}.json")["metrics"]
    seconds, iterations = max((row["time/elapsed"], row["iteration"]) for row in rows)
    return round(iterations / seconds * minutes * 60) * CONTENDERS[name]().updates_per_rollout


def load(path: Path) -> dict[str, Any]:
    """One result."""
    return json.loads(path.read_text(encoding="utf-8"))


def _run(job: Job, plan: Plan, folder: Path) -> bool:
    """Run or continue one job and keep its result; False where a person stopped it."""
    run = Path(plan.out) / "runs" / job.name
    config = _config(job, run)
    print(f"{job.name}: {job.minutes:g} minutes", flush=True)
    result = train(config, resume=(run / runfolder.CONFIG).exists())
    if result.interrupted:
        return False
    _keep(job, result.run, folder)
    return True


def _done(plan: Plan, job: Job) -> float:
    """Minutes of training that the last checkpoint of a run that was cut short has behind it."""
    run = Path(plan.out) / "runs" / job.name
    saved = checkpoint.latest(run)
    if saved is None:
        return 0.0
    rows = read_metrics(run / "metrics.jsonl")
    last = checkpoint.iteration_of(saved)
    return max((m["time/elapsed"] for m in rows if "time/elapsed" in m and m["iteration"] <= last), default=0.0) / 60


def _config(job: Job, run: Path) -> Config:
    config = replace(config_of(job.contender, job.lr, job.seed, job.decay_steps), out=str(run), max_minutes=job.minutes)
    return replace(config, eval_every=0, eval_prompts={}, eval_rewards=()) if job.searches else config


def _keep(job: Job, run: Path, folder: Path) -> None:
    """Write the result, the pictures first, so that a result is whole once it exists."""
    samples = read_samples(run)
    if samples is not None:
        last = max(samples.iterations)
        shutil.copy(run / "samples" / f"iteration-{last:06d}.png", folder / f"{job.name}.png")
    result = {
        "contender": job.contender,
        "lr": job.lr,
        "seed": job.seed,
        "minutes": job.minutes,
        **runfolder.record(run),
    }
    path = _result_of(folder, job)
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(result) + "\n", encoding="utf-8")


def _result_of(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.json"
