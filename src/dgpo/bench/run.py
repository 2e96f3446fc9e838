"""Runs the plan in pieces: a run that has its result is not run again, one that was cut short is continued.

OUT/results/time_to_score/NAME-SETTING-seedS.json             one run: config, environment, evaluations, all metrics
OUT/results/time_to_score/NAME-SETTING-seedS.png              its last pictures, the same prompts and noise for all
OUT/results/time_to_score/search/NAME-SETTING-lrX.json        one rate of the search
OUT/results/time_to_score/halved/NAME-SETTING-seedS-lrX.json  the first seed at the best rate, its half, and so on
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dgpo.bench.plan import EVALUATE_EVERY, LEARNING_RATES, SEARCH_SEED, Device, Plan, Setting, config_of
from dgpo.config import Config, from_dict, to_dict
from dgpo.errors import NonFiniteError, UserError
from dgpo.report.grids import read_samples
from dgpo.run import folder as runfolder
from dgpo.training.geometry import network_forwards
from dgpo.training.loop import train
from dgpo.utils.devices import device_of
from dgpo.utils.files import whole

INCIDENTAL = ("out", "device", "noise_scale_every")
GPU_BATCH = 512
TF32 = "NVIDIA_TF32_OVERRIDE"
GROWTH = 4  # rates that a search adds at most
ROLLOUTS, LAST_SHARE = "train/score/shapes_strict", 0.2  # what full-length runs of different rates are judged by
SEARCHED, SEARCHED_DIVERSITY, KEPT = "eval/train/shapes_strict", "eval/train/diversity", 0.9


class Job(NamedTuple):
    """One run of the benchmark. seed None: of the search. halving: of the first seed, to compare rates."""

    contender: str
    setting: Setting
    lr: float
    forwards: int
    seed: int | None = None
    halving: bool = False

    @property
    def name(self) -> str:
        seed = [] if self.seed is None else [f"seed{self.seed}"]
        rate = [f"lr{self.lr:g}"] if self.seed is None or self.halving else []
        return "-".join([self.contender, self.setting, *seed, *rate])


def result_path(job: Job, out: str | Path) -> Path:
    """Where a run's result is, or will be."""
    return results(out) / ("search" if job.seed is None else "halved" if job.halving else "") / f"{job.name}.json"


def bench(plan: Plan) -> bool:
    """Run what is missing, one run after the other; False where a person stopped it."""
    for name in plan.names:
        for stage in stages(plan, name):
            for job in stage:
                if not has_result(job, plan.out) and not run_job(job, plan.out, plan.device):
                    return False
    return True


def stages(plan: Plan, name: str) -> Iterator[list[Job]]:
    """The runs of a contender: the search for its rate, the first seed at halves of that, each seed at the best one.

    A stage is asked for when the one before it has all of its results. A single rate is taken without a search.
    """
    lr = plan.rates[0]
    if len(plan.rates) > 1:
        lr = yield from _search(plan, name)
        if plan.halve:
            lr = yield from _halve(plan, name, lr)
    yield [Job(name, plan.setting, lr, plan.forwards, seed) for seed in plan.seeds]


def _search(plan: Plan, name: str) -> Generator[list[Job], None, float]:
    """Short runs at all rates of the grid, which grows while its best is at an edge. Returns the best rate."""
    rates = sorted(plan.rates)
    while True:
        yield [Job(name, plan.setting, lr, plan.search_forwards) for lr in rates]
        best = best_lr(plan.out, name, plan.setting, rates)
        if best not in (rates[0], rates[-1]) or len(rates) == len(plan.rates) + GROWTH:
            return best
        rates = [rates[0] / 2, *rates] if best == rates[0] else [*rates, 2 * rates[-1]]


def _halve(plan: Plan, name: str, lr: float) -> Generator[list[Job], None, float]:
    """The first seed at this rate and at its half, and on while that helps. Returns the best rate.

    Its run there becomes that of the first seed.
    """
    runs = [Job(name, plan.setting, rate, plan.forwards, plan.seeds[0], halving=True) for rate in (lr, lr / 2)]
    yield [*runs]
    while _late_score_of(runs[-1], plan.out) > _late_score_of(runs[-2], plan.out):
        runs.append(runs[-1]._replace(lr=runs[-1].lr / 2))
        yield runs[-1:]
    best = runs[-2]
    _copy_result(best, best._replace(halving=False), plan.out)
    return best.lr


def _late_score_of(job: Job, out: str | Path) -> float:
    return late_score(load(result_path(job, out)))


def late_score(result: Mapping[str, Any]) -> float:
    """Mean strict score of a run's rollouts, on the train list, in its last fifth; below all others if it diverged."""
    scores = [row[ROLLOUTS] for row in result.get("metrics", []) if ROLLOUTS in row]
    return statistics.fmean(scores[-max(1, round(LAST_SHARE * len(scores))) :]) if scores else -math.inf


def _copy_result(job: Job, to: Job, out: str | Path) -> None:
    """Keep a finished run's result under another name too, the pictures first; what is there stays."""
    source, target = result_path(job, out), result_path(to, out)
    if target.exists() or not load(source)["evaluations"]:  # a rate that diverged is no run
        return
    for suffix in (".png", ".json"):
        if (given := source.with_suffix(suffix)).exists():
            with whole(target.with_suffix(suffix)) as unfinished:
                shutil.copy(given, unfinished)


def best_lr(out: str | Path, name: str, setting: Setting, rates: list[float]) -> float:
    """The rate with the highest score on the train list of those that keep its diversity, or of all if none does.

    Of equal ones it is the nearest to the middle of the grid. A rate whose run diverged is none.
    """
    loaded = {lr: load(result_path(Job(name, setting, lr, 0), out))["evaluations"] for lr in rates}
    found = {lr: evaluations for lr, evaluations in loaded.items() if evaluations}
    if not found:
        raise UserError(f"every rate of {name} from {rates[0]:g} to {rates[-1]:g} diverged; it cannot be compared")
    keep = [
        lr for lr, (first, *_, last) in found.items() if last[SEARCHED_DIVERSITY] >= KEPT * first[SEARCHED_DIVERSITY]
    ]
    middle = math.log(statistics.median(LEARNING_RATES))
    return max(keep or found, key=lambda lr: (found[lr][-1][SEARCHED], -abs(math.log(lr) - middle)))


def results(out: str | Path) -> Path:
    """The folder of the raw results."""
    return Path(out) / "results" / "time_to_score"


def load(path: Path) -> dict[str, Any]:
    """One result."""
    return json.loads(path.read_text(encoding="utf-8"))


def lasting(config: Config, forwards: int) -> Config:
    """With as many iterations as these forwards pay for, over which the rate falls."""
    iterations = max(1, round(forwards / network_forwards(config)))
    steps = iterations * config.updates_per_rollout
    return replace(config, iterations=iterations, optimizer=replace(config.optimizer, decay_steps=steps))


def run_config(job: Job, out: str | Path) -> Config:
    """What a job trains."""
    config = lasting(config_of(job.contender, job.setting), job.forwards)
    config = replace(
        config,
        name=job._replace(halving=False).name,
        out=str(Path(out) / "runs" / job.name),
        seed=SEARCH_SEED if job.seed is None else job.seed,
        eval_every=max(1, round(EVALUATE_EVERY[job.setting] / network_forwards(config))),
        optimizer=replace(config.optimizer, lr=job.lr),
    )
    if job.seed is None:  # no look at the evaluation lists
        train_list = {"train": str(config.prompts)}
        config = replace(
            config,
            eval_prompts=train_list,
            eval_images={},
            eval_images_per_prompt=2,
            eval_every=config.iterations,
        )
    return config


def has_result(job: Job, out: str | Path) -> bool:
    """Whether a run has its result; one of other settings is refused."""
    path = result_path(job, out)
    if path.exists():
        _require_same(path, _asked(run_config(job, out)))
    return path.exists()


def run_job(job: Job, out: str | Path, device: Device = "auto") -> bool:
    """Run or continue a run that has no result yet, and keep its result; False where a person stopped it.

    A rate that is tried, and at which the run diverges, has that as its result.
    """
    path, config = result_path(job, out), placed(run_config(job, out), device)
    print(f"{job.name}: {config.iterations} iterations at a rate of {job.lr:g}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _full_precision():
            result = train(config, resume=(Path(config.out or "") / runfolder.CONFIG).exists())
    except NonFiniteError as error:
        if job.seed is not None and not job.halving:
            raise
        print(f"{job.name} diverged: {error}", flush=True)
        _write({**job._asdict(), "asked": _asked(config), "diverged": str(error), "evaluations": []}, path)
        return True
    if not result.interrupted:
        _keep(job, _asked(config), result.run, path)
    return not result.interrupted


@contextmanager
def _full_precision() -> Iterator[None]:
    """Keep TF32 out of CUDA's libraries, which read this when they are first used."""
    before = os.environ.get(TF32)
    os.environ[TF32] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TF32]
        else:
            os.environ[TF32] = before


def placed(config: Config, device: Device) -> Config:
    """A run's config on a device. On a GPU launches cost more than images, so it takes many images at a time.

    The gradient noise scale, which the benchmark does not read, takes a backward pass for each group, so it is left out
    there. Neither changes what is learned but for the rounding of sums.
    """
    config = replace(config, device=device)
    if device_of(device) != "cuda":
        return config
    sampling = replace(config.sampling, batch_size=GPU_BATCH)
    return replace(config, sampling=sampling, noise_scale_every=0)


def _asked(config: Config) -> dict[str, Any]:
    """The config that a result keeps, without its place."""
    return to_dict(replace(config, out=None))


def _require_same(path: Path, asked: dict[str, Any]) -> None:
    """Refuse a result that was made with other settings than this call would take."""
    before, now = comparable(load(path)["asked"]), comparable(asked)
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        raise UserError(
            f"{path} was made with another {', '.join(changed)} than this call would take. Move it away to run it "
            "again, or choose another --out"
        )


def comparable(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the defaults of fields that are newer than it, and without what its device decides."""
    try:
        filled = to_dict(from_dict(asked))
    except UserError:  # it has what no config has any more, and cannot be what this call would take
        filled = asked
    sampling = {name: value for name, value in filled["sampling"].items() if name != "batch_size"}
    return {name: value for name, value in filled.items() if name not in INCIDENTAL} | {"sampling": sampling}


def _keep(job: Job, asked: dict[str, Any], run: Path, path: Path) -> None:
    """Write the result, the pictures first, so that a result is whole once it exists."""
    samples = read_samples(run)
    if samples is not None and job.seed is not None:
        shutil.copy(run / "samples" / f"iteration-{max(samples.iterations):06d}.png", path.with_suffix(".png"))
    record = runfolder.record(run)
    _write({**job._asdict(), "asked": asked, **record, "evaluations": evaluations(record["metrics"])}, path)


def _write(result: dict[str, Any], path: Path) -> None:
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(result) + "\n", encoding="utf-8")


def evaluations(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of evaluations: their scores, and what training had cost until then."""
    return [
        {
            "iteration": row["iteration"],
            "forwards": row["train/forwards"],
            "seconds": row["time/elapsed"],
            **{name: value for name, value in row.items() if name.startswith("eval/")},
        }
        for row in metrics
        if any(name.startswith("eval/") for name in row)
    ]
