"""THE LOOP: Direct Group Preference Optimization and its peers, from a config to a better model.

    for every iteration:
        prompts -> a group of images each, by a deterministic solver -> rewards -> advantages        (rollout.py)
        for every update:
            for every drawn (t, noise): velocities of ref, old and policy -> the algorithm's loss -> backward
            clip, step, follow with old and ema
        log, now and then evaluate and save

Every network forward of an update is a line of `learn` or `fixed_velocities` below. The update does not
depend on the micro-batch size nor on the number of processes: a loss that couples a group gets the group's total from a
pass without gradient wherever a group is split. A run that is killed and resumed repeats bit for bit on one machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dgpo import checkpoint, distributed, runfolder
from dgpo.algorithms import Algorithm
from dgpo.config import Config, to_dict
from dgpo.console import Console
from dgpo.core import seeds
from dgpo.core.advantages import frac_reward_zero_std
from dgpo.core.groups import identity
from dgpo.data import PromptSampler, load_prompts
from dgpo.errors import UserError
from dgpo.evaluate import evaluate
from dgpo.interrupt import Interrupt
from dgpo.meter import GradientMeter, NoiseAverage
from dgpo.models import VelocityModel, load_model
from dgpo.report import write_report
from dgpo.report.grids import write_samples
from dgpo.rewards.base import Reward, RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.rollout import CondCache, chunks, collect
from dgpo.stopwatch import Stopwatch
from dgpo.trackers import NullTracker, TrackerGroup, make_trackers
from dgpo.types import Rollout, TrainPoint, Velocities


class NonFiniteError(RuntimeError):
    """A loss or gradient became NaN or infinite; the weights from before the step were saved."""


class Result(NamedTuple):
    """What a finished or interrupted run leaves."""

    run: Path  # the run folder
    iterations: int  # finished
    metrics: dict[str, float]  # of the last evaluation
    interrupted: bool


@dataclass
class State:
    """What changes during a run beside weights and optimizer. Plain numbers, kept in every checkpoint."""

    iteration: int = 0  # finished
    step: int = 0  # optimizer steps
    position: int = 0  # of the prompt sampler
    elapsed: float = 0.0  # seconds
    old_is_policy: bool = True  # whether `old` holds the policy's very values
    best_score: float = -math.inf
    best_iteration: int = -1
    noise: NoiseAverage = field(default_factory=NoiseAverage)


def train(
    config: Config,
    *,
    model: VelocityModel | None = None,
    reward_functions: Mapping[str, Reward] | None = None,
    resume: bool = False,
) -> Result:
    """Run `config`, or with `resume` continue the run in `config.out`, and return where it ended.

    model: used instead of loading `config.model`; reward_functions: functions for names in `config.rewards`
    Raises UserError for bad input before anything is written, RewardError and NonFiniteError after saving the state.
    """
    device = distributed.init(device_of(config.device))
    algorithm = config.algorithm
    prompts = load_prompts(config.prompts)
    eval_sets = (
        {name: load_prompts(source) for name, source in config.eval_prompts.items()} if config.eval_every else {}
    )
    reward = RewardSet(config.rewards, reward_functions)
    eval_reward = RewardSet(config.rewards, reward_functions, watched=config.eval_rewards)
    for some in (prompts, *eval_sets.values()):
        (eval_reward if some is not prompts else reward).check_metadata(some.metadata)
    model = model or load(config, device)
    run, config = open_folder(config, resume)
    reward.save_failures_to = eval_reward.save_failures_to = run / "failures"

    sampler = PromptSampler(len(prompts), config.seed)
    optimizer = make_optimizer(model, config)
    state = restore(run, model, optimizer) if resume else State()
    sampler.position = state.position
    encode, clock = CondCache(model), Stopwatch(model.device)
    tracker = trackers(config, run, state.iteration if resume else None)
    console = Console(config, model, algorithm, len(prompts))
    latest: dict[str, float] = {}

    def assess() -> None:
        """Evaluate the slow average; note whether it is the best so far."""
        with clock.phase("eval"):
            found = evaluate(model, encode, eval_sets, eval_reward, config)
        latest.update(found.metrics)
        state.best_score, state.best_iteration = better(state, found.metrics)
        tracker.log(state.iteration, {**found.metrics, **clock.read(), "time/elapsed": state.elapsed})
        console.evaluated(state.iteration, found.metrics)
        if distributed.is_main() and found.prompts:
            tracker.images(state.iteration, "samples", write_samples(run, state.iteration, found.images, found.prompts))

    with closing(tracker), console, Interrupt() as interrupt:
        if state.iteration == 0 and eval_sets:
            assess()
        while state.iteration < config.iterations:
            started = time.perf_counter()
            try:
                batch = prompts.subset(sampler.next(config.num_groups))
                rollout = collect(model, algorithm, reward, encode, batch, config, state.iteration, clock)
                metrics = describe(rollout, config)
                for update in range(config.updates_per_rollout):
                    with clock.phase("update"):
                        generator = seeds.generator(config.seed, "points", state.iteration, update)
                        points = list(algorithm.points(rollout, generator))
                        metrics |= learn(model, algorithm, optimizer, rollout, points, state, config)
            except (RewardError, NonFiniteError):
                save(run / "failed", model, optimizer, state, config)
                raise
            state.iteration, state.position = state.iteration + 1, sampler.position
            state.elapsed += (seconds := time.perf_counter() - started)
            metrics |= {**clock.read(), "time/iteration": seconds, "time/elapsed": state.elapsed}
            tracker.log(state.iteration, metrics)
            console.iterated(state.iteration, metrics)

            last = state.iteration == config.iterations
            if eval_sets and (last or state.iteration % config.eval_every == 0):
                assess()
            stop = interrupt.requested()
            if config.checkpoint_every and (last or stop or state.iteration % config.checkpoint_every == 0):
                save(run, model, optimizer, state, config)
            if stop:
                break
        if distributed.is_main():
            finish(run, model, state, config)
    return Result(run, state.iteration, latest, state.iteration < config.iterations)


def learn(
    model: VelocityModel,
    algorithm: Algorithm,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    points: Sequence[TrainPoint],
    state: State,
    config: Config,
) -> dict[str, float]:
    """One optimizer step on one rollout: the mean of the loss over all images and points."""
    parameters = model.weights.parameters()
    meter = GradientMeter(parameters) if measures_noise(state, config) else None
    micro = [slice(*rows) for rows in micro_batches(rollout, config, by_group=meter is not None)]
    images = config.num_groups * config.group_size
    split = algorithm.couples_group and splits_group(rollout, micro)
    sums: dict[str, Tensor] = {}

    optimizer.zero_grad(set_to_none=True)
    fixed = [fixed_velocities(model, algorithm, point, rollout, micro, state, split) for point in points]
    reducers = [group_totals(algorithm, *at, rollout, micro) if split else identity for at in zip(points, fixed)]
    for rows in micro:
        part = rollout.rows(rows)
        for point, given, reduce in zip(points, fixed, reducers):
            at = point.rows(rows)
            v = model.velocity(at.x_t, at.t, part.cond)
            velocities = given.rows(rows)._replace(policy=v)
            if velocities.old is None and state.old_is_policy:
                velocities = velocities._replace(old=v.detach())
            loss, metrics = algorithm.loss(at, velocities, part, reduce)
            share = len(part.prompts) / images / len(points)
            (loss * share).backward()
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * share
        if meter:
            meter.cut()
    if meter:
        state.noise.add(*meter.finish())

    distributed.all_reduce_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
    metrics = {f"train/{name}": distributed.all_reduce_sum(value).item() for name, value in sums.items()}
    metrics |= {"train/grad_norm": norm.item(), "train/lr": set_lr(optimizer, state.step, config)}
    require_finite(metrics, state)
    optimizer.step()

    if "old" in model.weights.names:
        decay = algorithm.old_decay(state.step)
        model.weights.ema_update("old", decay)
        state.old_is_policy = decay == 0
    model.weights.ema_update("ema", min(config.optimizer.ema_decay, (1 + state.step) / (10 + state.step)))
    state.step += 1
    if meter:
        metrics |= {"train/grad_noise_scale": state.noise.groups, "train/grad_signal": state.noise.signal}
    return metrics


@torch.no_grad()
def fixed_velocities(
    model: VelocityModel,
    algorithm: Algorithm,
    point: TrainPoint,
    rollout: Rollout,
    micro: Sequence[slice],
    state: State,
    split: bool,
) -> Velocities:
    """What does not train at this point: `ref` and `old` where the algorithm needs them, and for a split group the policy.

    While `old` still equals the policy its forward is the policy's own.
    """
    at = [(point.rows(rows), rollout.cond[rows]) for rows in micro]
    ref = old = policy = None
    if "ref" in algorithm.needs:
        ref = torch.cat([model.velocity(p.x_t, p.t, c, algorithm.ref_guidance_scale, "ref") for p, c in at])
    if split:
        policy = torch.cat([model.velocity(p.x_t, p.t, c) for p, c in at])
    if "old" in algorithm.needs:
        old = (
            policy if state.old_is_policy else torch.cat([model.velocity(p.x_t, p.t, c, weights="old") for p, c in at])
        )
    return Velocities(policy, ref, old)


def group_totals(
    algorithm: Algorithm, point: TrainPoint, given: Velocities, rollout: Rollout, micro: Sequence[slice]
) -> Callable[[Tensor], Tensor]:
    """A `reduce` that answers with the sums over whole groups, whatever rows it is asked from."""
    parts = [algorithm.statistic(point.rows(rows), given.rows(rows), rollout.rows(rows)) for rows in micro]
    total = distributed.all_reduce_sum(torch.stack(parts).sum(0))
    return lambda partial: total


def micro_batches(rollout: Rollout, config: Config, by_group: bool = False) -> list[tuple[int, int]]:
    """(first, last + 1) rows of each micro-batch of this rank: as many whole groups as fit, or parts of a group."""
    rows, size = len(rollout.prompts), config.micro_batch_size or len(rollout.prompts)
    if by_group:
        size = min(size, config.group_size)
    if size > config.group_size:
        size -= size % config.group_size
    return [(part.start, part.stop) for part in chunks(rows, max(1, size))]


def splits_group(rollout: Rollout, micro: Sequence[slice]) -> bool:
    """Whether any group is spread over micro-batches or ranks, on any rank."""
    split = torch.zeros(1, device=rollout.group_sizes.device)
    for rows in micro:
        counts = torch.bincount(rollout.group_index[rows], minlength=rollout.num_groups)
        split += ((counts > 0) & (counts < rollout.group_sizes)).any()
    return distributed.all_reduce_sum(split).item() > 0


def measures_noise(state: State, config: Config) -> bool:
    """Whether this update measures the gradient noise scale, which needs two or more whole groups in one process."""
    fits = config.num_groups > 1 and distributed.world_size() == 1
    fits &= config.micro_batch_size is None or config.micro_batch_size >= config.group_size
    return bool(config.noise_scale_every) and fits and state.step % config.noise_scale_every == 0


def require_finite(metrics: Mapping[str, float], state: State) -> None:
    """Stop before a step that would ruin the weights."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"{', '.join(bad)} not finite in the update of iteration {state.iteration + 1} (step {state.step + 1}). "
            "The step was not taken, and the state before it is in the run's folder failed/. Look at train/grad_norm "
            "and train/kl of the last rows of metrics.jsonl: growing values ask for a smaller optimizer.lr or a larger "
            "kl_coef; sudden ones for dtype fp32, or for rewards of absurd size"
        )


def describe(rollout: Rollout, config: Config) -> dict[str, float]:
    """What a rollout earned, over all ranks."""
    rewards = distributed.all_gather_rows(rollout.rewards)
    groups = distributed.all_gather_rows(rollout.group_index)
    scores = {name: distributed.all_gather_rows(score) for name, score in rollout.scores.items()}
    return {
        "train/reward_mean": rewards.mean().item(),
        "train/reward_std": rewards.std().item(),
        "train/frac_reward_zero_std": float(frac_reward_zero_std(rewards, groups, rollout.num_groups)),
        **{f"train/score/{name}": score.float().mean().item() for name, score in scores.items()},
    }


def better(state: State, metrics: Mapping[str, float]) -> tuple[float, int]:
    """The best evaluation so far by the trained reward, mean over the evaluation sets; (score, iteration)."""
    rewards = [v for name, v in metrics.items() if name.split("/")[2:] == ["reward"]]
    score = sum(rewards) / len(rewards) if rewards else -math.inf
    return max((state.best_score, state.best_iteration), (score, state.iteration), key=lambda pair: pair[0])


def open_folder(config: Config, resume: bool) -> tuple[Path, Config]:
    """The run folder, made or reopened by the first process; every process gets the same config."""
    opened: list[tuple[Path, Config] | UserError] = []
    if distributed.is_main():
        try:
            opened = [runfolder.reopen(config.out or "", config) if resume else runfolder.create(config)]
        except UserError as error:
            opened = [error]
    (result,) = distributed.gather_objects(opened)
    if isinstance(result, UserError):
        raise result
    return result


def device_of(name: str) -> str:
    """`auto` is CUDA where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load(config: Config, device: torch.device) -> VelocityModel:
    """The config's model with the weight sets that the run uses."""
    switches = any(config.algorithm.rollout_weights(i) == "old" for i in (0, config.iterations - 1))
    sets = {"ema", *config.algorithm.needs, *(["old"] if switches else []), *(["ref"] if config.eval_every else [])}
    return load_model(
        config.model,
        finetune=config.finetune,
        lora=config.lora,
        sets=sorted(sets),
        seed=config.seed,
        device=str(device),
        dtype=config.dtype,
        resolution=config.resolution,
        shift=config.sampling.shift,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def make_optimizer(model: VelocityModel, config: Config) -> torch.optim.Optimizer:
    o = config.optimizer
    return torch.optim.AdamW(
        model.weights.parameters(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True
    )


def set_lr(optimizer: torch.optim.Optimizer, step: int, config: Config) -> float:
    """Linear warm-up, then constant."""
    lr = config.optimizer.lr * min(1.0, (step + 1) / max(1, config.optimizer.warmup_steps))
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def trackers(config: Config, run: Path, resumed_at: int | None) -> TrackerGroup:
    if not distributed.is_main():
        return TrackerGroup([NullTracker()])
    return make_trackers(config.trackers, run, to_dict(config), resumed_at)


def save(run: Path, model: VelocityModel, optimizer: torch.optim.Optimizer, state: State, config: Config) -> None:
    """Write a checkpoint of everything that a resumed run needs, with the averaged LoRA as stock diffusers reads it."""
    if distributed.is_main():
        names = [name for name, _ in model.weights.named_parameters()]
        sets = {name: model.weights.tensors(name) for name in model.weights.names if name != "ref"}
        tensors = {**sets, "optimizer": checkpoint.optimizer_tensors(optimizer, names)}
        export = (lambda folder: model.weights.export(folder / "lora", "ema")) if config.finetune == "lora" else None
        checkpoint.save(run, state.iteration, tensors, asdict(state), export)
        checkpoint.prune(run, config.keep_checkpoints, {state.best_iteration})
    distributed.barrier()


def restore(run: Path, model: VelocityModel, optimizer: torch.optim.Optimizer) -> State:
    """Take over the newest checkpoint of a run."""
    path = checkpoint.latest(run)
    assert path is not None, "runfolder.reopen refuses a run without checkpoints"
    tensors, values = checkpoint.load(path)
    names = [name for name, _ in model.weights.named_parameters()]
    checkpoint.load_optimizer_tensors(optimizer, names, tensors.pop("optimizer"))
    for name, part in tensors.items():
        model.weights.load(name, part)
    return replace(State(**values), noise=NoiseAverage(**values["noise"]))


def finish(run: Path, model: VelocityModel, state: State, config: Config) -> None:
    """The averaged weights as stock diffusers reads them, and the report."""
    if state.iteration == config.iterations and config.checkpoint_every:
        model.weights.export(run / "final", "ema")
    write_report(run)
