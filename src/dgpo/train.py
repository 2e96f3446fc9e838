"""THE LOOP: Direct Group Preference Optimization and its peers, from a config to a better model.

    for every iteration:
        prompts -> a group of images each, by a deterministic solver -> rewards -> advantages        (rollout.py)
            or, offline, such groups from a dataset
        for every update:                                                                               (`improve`)
            for every drawn (t, noise): velocities of ref, old and policy -> the algorithm's loss -> backward  (`learn`)
            clip, step, follow with old and ema
        log, now and then evaluate (and look whether what is not trained pays: watch.py) and save

Every network forward of an update is a line of `learn` or `fixed_velocities` below. The update depends neither on the
micro-batch size nor on the number of processes: a loss that couples a group gets the group's total from a pass without
gradient wherever a group is split. A run that is killed and resumed repeats bit for bit on one machine.

What stops a run loses nothing. Ctrl-C or another signal saves after the iteration (interrupt.py), and so does an alarm
under `stop_on_alarm`. Whatever fails before the first step of an iteration, the iterations before it are saved as a
checkpoint like any other, and `resume` goes on from there (rescue.py).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dgpo import checkpoint, distributed, runfolder, schedule
from dgpo.algorithms import Algorithm
from dgpo.comparison import compared, constant_scores
from dgpo.config import Config, Optimizer, save_yaml, to_dict
from dgpo.console import Console
from dgpo.core import seeds
from dgpo.core.advantages import frac_reward_zero_std
from dgpo.core.devices import device_of, precision_of
from dgpo.core.groups import Reduce, identity
from dgpo.data import PromptSampler, PromptSet, load_prompts
from dgpo.encoding import CondCache
from dgpo.errors import NonFiniteError, UserError, did_you_mean
from dgpo.evaluate import Evaluation, evaluate
from dgpo.hub import push, require_login
from dgpo.interrupt import Interrupt
from dgpo.loading import load_configured
from dgpo.meter import GradientMeter, NoiseAverage
from dgpo.models import VelocityModel
from dgpo.offline import GroupDataset
from dgpo.report import write_card, write_report
from dgpo.report.grids import write_samples
from dgpo.rescue import rescue
from dgpo.rewards.base import Reward
from dgpo.rewards.combine import RewardSet, check_run
from dgpo.rollout import chunks, collect, replay
from dgpo.stopwatch import Stopwatch
from dgpo.trackers import NullTracker, TrackerGroup, closed, make_trackers, require_trackers
from dgpo.types import Rollout, TrainPoint, Velocities
from dgpo.watch import ALARMS, Alarm, alarm, compare


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
    step: int = 0  # optimizer steps, with the one that is being taken
    first_step: int = 0  # of the iteration that has not finished
    position: int = 0  # of the prompt sampler
    elapsed: float = 0.0  # seconds
    old_is_policy: bool = True  # whether `old` holds the policy's very values
    evaluated: int = -1  # the iteration after which the last evaluation was
    first_score: float | None = None  # of the first evaluation
    best_score: float | None = None  # of the evaluations so far
    best_alarmed: bool = False
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
    Raises UserError for bad input before anything is written, and RunFailed (RewardError, NonFiniteError, or with
    whatever was raised as its cause) after saving the state. A run that was killed before its first checkpoint is
    resumed from its beginning.
    """
    with Interrupt() as interrupt, ExitStack() as held:
        return _train(config, model, reward_functions or {}, resume, interrupt, held)


def _train(
    config: Config,
    model: VelocityModel | None,
    functions: Mapping[str, Reward],
    resume: bool,
    interrupt: Interrupt,
    held: ExitStack,
) -> Result:
    """held: keeps the run folder's lock"""
    device = distributed.init(device_of(config.device))
    config = runfolder.with_stored_lora(config) if resume else config
    config = replace(config, dtype=precision_of(config.dtype, device))  # so that a resume elsewhere is no other run
    algorithm = config.algorithm
    dataset = None if config.offline is None else GroupDataset(config.offline)
    config = config if dataset is None else resolved(config, dataset)
    prompts = load_prompts(config.prompts) if dataset is None else dataset.prompts
    sources = config.eval_prompts if config.eval_every else {}
    eval_sets = {name: load_prompts(source) for name, source in sources.items()}
    reward, eval_reward = reward_sets(config, functions)
    doubts = check_run(config, reward, eval_reward, prompts if dataset is None else None, eval_sets)
    require_trackers(config.trackers)
    if config.push_to_hub:
        require_login(config.push_to_hub)
    if model is None:
        model = load(config, device)
        config = replace(config, lora=getattr(model, "lora", config.lora))  # what a LoRA to continue told
    require_feasible(model, config, resume)
    if dataset is not None:
        require_trainable(dataset, model, config)
    optimizer = make_optimizer(model, config)
    run, config, resume = open_folder(config, resume, held)
    reward.save_failures_to = eval_reward.save_failures_to = run / "failures"

    state = restore(run, model, optimizer) if resume else State()
    sampler = PromptSampler(len(prompts), config.seed)
    sampler.position = state.position
    encode, clock = CondCache(model, config.prompt_cache), Stopwatch(model.device)

    def draw_prompts(number: int) -> PromptSet:
        return prompts.subset(sampler.next(number))

    if config.checkpoint_every and not resume:
        save(run, model, optimizer, state, config)  # so that a run killed in its first evaluation can be resumed
    saved = state.iteration if config.checkpoint_every or resume else -1
    tracker = open_trackers(config, run, state, resume)
    console = Console(config, model, algorithm, len(prompts))
    console.warn(doubts)
    latest: dict[str, float] = {}

    def broken() -> list[str]:
        return not_finite(model, optimizer)

    def write(folder: Path) -> None:
        write_checkpoint(folder, model, optimizer, state, config)

    if distributed.is_main():
        runfolder.write_config(run, config)  # now that nothing refuses it
    interrupt.defer()
    with rescue(run, state, broken, write), closed(tracker), console:
        if config.free_text_encoders:
            texts = [*prompts.prompts, *(text for some in eval_sets.values() for text in some.prompts)]
            encode.know_all(texts, console.encoding)
        while True:
            last, stop = done(state, config), False
            if state.evaluated < state.iteration and schedule.evaluates(config, state.iteration, last):
                with clock.phase("eval"):
                    found = evaluate(model, encode, eval_sets, eval_reward, config)
                latest, told = watched(run, state.iteration, found, config)
                tracker.log(state.iteration, {**latest, **clock.read(), "time/elapsed": state.elapsed})
                note_evaluation(state, latest)
                console.evaluated(state.iteration, latest)
                if told:
                    console.alarmed(state.iteration, str(told), config.stop_on_alarm and not last)
                if distributed.is_main() and found.prompts:
                    picture = write_samples(run, state.iteration, found.images, found.prompts)
                    tracker.images(state.iteration, "samples", picture)
                stop = config.stop_on_alarm and told is not None
            stop = interrupt.requested() or stop
            if saved < state.iteration and (stop or checkpoint_due(state, config)):
                save(run, model, optimizer, state, config)
                saved = state.iteration
            if last or stop:
                break

            started = time.perf_counter()
            if dataset is None:
                rollout = collect(model, algorithm, reward, encode, draw_prompts, config, state.iteration, clock)
            else:
                groups = sampler.next(config.num_groups)
                rollout = replay(model, algorithm, dataset, groups, encode, config, state.iteration, clock)
            metrics = describe(rollout, config)
            console.constant(state.iteration + 1, constant_scores(rollout, config))
            with clock.phase("update"):
                metrics |= improve(model, algorithm, optimizer, to_train(rollout, encode, config), state, config)
            state.iteration, state.position, state.first_step = state.iteration + 1, sampler.position, state.step
            # the main process's, on all alike: whether the time is up must not differ between them
            state.elapsed += (seconds := distributed.gather_objects([time.perf_counter() - started])[0])
            metrics |= {**clock.read(), "time/iteration": seconds, "time/elapsed": state.elapsed}
            tracker.log(state.iteration, metrics)
            console.iterated(state.iteration, metrics)
        if distributed.is_main():
            finish(run, model, state, config)
    if distributed.is_main():
        upload(run, state, config)
    return Result(run, state.iteration, latest, not done(state, config))


def improve(
    model: VelocityModel,
    algorithm: Algorithm,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    state: State,
    config: Config,
) -> dict[str, float]:
    """All updates of one rollout; none where no image of it trains. Metrics are those of the last that had them."""
    metrics: dict[str, float] = {}
    for update in range(config.updates_per_rollout if rollout.group_sizes.any() else 0):
        part = share_of_update(rollout, update, config)
        generator = seeds.generator(config.seed, "points", rollout.iteration, update)
        points = list(algorithm.points(part, generator))
        metrics |= learn(model, algorithm, optimizer, part, points, state, config)
        if schedule.old_follows(config, update):
            follow(model, algorithm, state)
    return metrics


def learn(
    model: VelocityModel,
    algorithm: Algorithm,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    points: Sequence[TrainPoint],
    state: State,
    config: Config,
) -> dict[str, float]:
    """One optimizer step on one rollout: the mean of the loss over groups, their trained images and points."""
    parameters = model.weights.parameters()
    measures = schedule.measures_noise(config, state.step, distributed.world_size()) and of_one_size(rollout)
    meter = GradientMeter(parameters) if measures else None
    micro = micro_batches(rollout, config, by_group=meter is not None)
    split = algorithm.couples_group and splits_group(rollout, micro)
    trained = int(rollout.group_sizes.sum())  # over all ranks
    # a group that was dropped counts like the others, with a loss of 0
    images = config.num_groups * trained / max(1, int((rollout.group_sizes > 0).sum()))
    guidance = algorithm.policy_guidance(rollout.guidance_scale)

    optimizer.zero_grad(set_to_none=True)
    fixed = distributed.together(
        lambda: [fixed_velocities(model, algorithm, point, rollout, micro, state, split) for point in points]
    )
    reducers = [group_totals(algorithm, *at, rollout, micro) if split else identity for at in zip(points, fixed)]

    def backward() -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for rows in micro:
            part = rollout.rows(rows)
            for point, given, reduce in zip(points, fixed, reducers):
                at, given = point.rows(rows), given.rows(rows)
                v = model.velocity(at.x_t, at.t, part.cond, guidance)
                old = v.detach() if state.old_is_policy else given.old
                loss, metrics = algorithm.loss(at, Velocities(v, given.ref, old), part, reduce)
                (loss * (len(part.prompts) / images / len(points))).backward()
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0) + value * (len(part.prompts) / trained / len(points))
            if meter:
                meter.cut()
        return sums

    sums = distributed.together(backward)  # one rank may run out of memory
    group_sq_norms = meter.finish() if meter else None

    distributed.all_reduce_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm).item()
    metrics = {f"train/{name}": value for name, value in summed(sums).items()}
    metrics |= {"train/grad_norm": norm, "train/lr": set_lr(optimizer, state.step, config)}
    require_finite(metrics, state)
    taken = state.step
    state.step += 1  # before the weights change: what fails from here on leaves no whole iteration
    optimizer.step()
    model.weights.ema_update("ema", min(config.optimizer.ema_decay, (1 + taken) / (10 + taken)))
    state.old_is_policy = False
    if group_sq_norms is not None:
        sq_norms = distributed.all_gather_rows(group_sq_norms)
        dropped = sq_norms.new_zeros(config.num_groups - len(sq_norms))
        state.noise.add(torch.cat([sq_norms, dropped]), norm**2)
        metrics |= {"train/grad_noise_scale": state.noise.groups, "train/grad_signal": state.noise.signal}
    return metrics


def follow(model: VelocityModel, algorithm: Algorithm, state: State) -> None:
    """`old` follows the policy after an optimizer step."""
    if "old" in model.weights.names:
        decay = algorithm.old_decay(state.step - 1)
        model.weights.ema_update("old", decay)
        state.old_is_policy = decay == 0


def to_train(rollout: Rollout, encode: CondCache, config: Config) -> Rollout:
    """The images that train, some of them with the empty prompt: whole groups, if the loss couples their images."""
    rollout = rollout.rows(rollout.trained)
    if not config.text_dropout or not rollout.prompts:
        return rollout
    rng = seeds.generator(config.seed, "text dropout", rollout.iteration)
    drawn = torch.rand((1 + config.redraw_groups) * config.num_groups * config.group_size, generator=rng)
    chance = rollout.group_index if config.algorithm.couples_group else rollout.image_index
    dropped = drawn.to(rollout.x0.device)[chance] < config.text_dropout
    own, empty = torch.arange(len(dropped), device=dropped.device), len(dropped)
    choices = rollout.cond.cat(encode([""]).to(dropped.device))
    return rollout._replace(cond=choices[torch.where(dropped, empty, own)])


def share_of_update(rollout: Rollout, update: int, config: Config) -> Rollout:
    """All images, or with `split_updates` those that are this update's."""
    if not config.split_updates:
        return rollout
    part = rollout.rows(schedule.in_update(config, rollout.image_index, update))
    counts = torch.bincount(part.group_index, minlength=rollout.num_groups)
    return part._replace(group_sizes=distributed.all_reduce_sum(counts))


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
    """What does not train at this point: `ref` and `old` where the algorithm needs them, the policy of split groups.

    While `old` still equals the policy, the policy's own forward stands in for it.
    """
    at = [(point.rows(rows), rollout.cond[rows]) for rows in micro]
    policy_scale = algorithm.policy_guidance(rollout.guidance_scale)
    ref_scale = algorithm.ref_guidance(rollout.guidance_scale)
    ref = old = policy = None
    if "ref" in algorithm.needs and at:
        ref = torch.cat([model.velocity(p.x_t, p.t, c, ref_scale, "ref") for p, c in at])
    if split and at:
        policy = torch.cat([model.velocity(p.x_t, p.t, c, policy_scale) for p, c in at])
    if "old" in algorithm.needs and not state.old_is_policy and at:
        old = torch.cat([model.velocity(p.x_t, p.t, c, policy_scale, "old") for p, c in at])
    return Velocities(policy, ref, policy if state.old_is_policy else old)


def group_totals(
    algorithm: Algorithm, point: TrainPoint, given: Velocities, rollout: Rollout, micro: Sequence[slice]
) -> Reduce:
    """A `reduce` that answers with the sums over whole groups, whatever rows it is asked from."""
    parts = [algorithm.statistic(point.rows(rows), given.rows(rows), rollout.rows(rows)) for rows in micro]
    total = distributed.all_reduce_sum(sum(parts, torch.zeros_like(rollout.group_sizes, dtype=torch.float32)))
    return lambda partial: total


def micro_batches(rollout: Rollout, config: Config, by_group: bool = False) -> list[slice]:
    """This rank's rows, cut up: as many whole groups as fit (one if `by_group`), or parts of a group."""
    rows, group = len(rollout.prompts), max(1, int(rollout.group_sizes.max()))
    return list(chunks(rows, schedule.micro_batch(config, rows, group, by_group)))


def splits_group(rollout: Rollout, micro: Sequence[slice]) -> bool:
    """Whether any group is spread over micro-batches or ranks, on any rank."""
    counts = [torch.bincount(rollout.group_index[rows], minlength=rollout.num_groups) for rows in micro]
    split = sum(((count > 0) & (count < rollout.group_sizes)).any() for count in counts)
    split = torch.as_tensor(split, device=rollout.group_sizes.device)
    return distributed.all_reduce_sum(split.float()).item() > 0


def of_one_size(rollout: Rollout) -> bool:
    """Whether all groups that train have as many images, as the noise scale is measured on."""
    return len(rollout.group_sizes[rollout.group_sizes > 0].unique()) == 1


def require_finite(metrics: Mapping[str, float], state: State) -> None:
    """Stop before a step that would ruin the weights."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise distributed.shared(
            NonFiniteError(
                f"{', '.join(bad)} not finite in the update of iteration {state.iteration + 1} (step "
                f"{state.step + 1}). The step was not taken. Look at train/grad_norm and train/kl of the last rows of "
                "metrics.jsonl: growing values ask for a smaller optimizer.lr or a larger kl_coef; sudden ones for "
                "dtype fp32, or for rewards of absurd size"
            )
        )


def summed(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Sums over ranks by name; a rank without images has no names."""
    parts = distributed.gather_objects([{name: value.item() for name, value in sums.items()}])
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: math.fsum(part.get(name, 0.0) for part in parts) for name in names}


def describe(rollout: Rollout, config: Config) -> dict[str, float]:
    """What a rollout earned, over all ranks, and how much of it trains. Means are over the images with a score."""
    rewards = distributed.all_gather_rows(rollout.rewards)
    earned = rewards[~rewards.isnan()]
    comparable = compared(rollout, config)
    groups, own = comparable.group_index.unique(return_inverse=True)
    names = dict.fromkeys(distributed.gather_objects([*rollout.scores]))
    scores = {name: distributed.all_gather_rows(rollout.score(name)) for name in names}
    return {
        "train/reward_mean": earned.mean().item(),
        "train/reward_std": earned.std().item(),
        "train/frac_reward_zero_std": frac_reward_zero_std(comparable.rewards, own, len(groups)).item(),
        **{f"train/score/{name}": score.nanmean().item() for name, score in scores.items() if not score.isnan().all()},
        **({"train/frac_trained": rollout.group_sizes.sum().item() / len(rewards)} if chooses(config) else {}),
        **failures(rollout, config),
    }


def failures(rollout: Rollout, config: Config) -> dict[str, float]:
    """Calls repeated and images dropped, over all ranks, of each trained reward that has a policy for failures."""
    total = sum(distributed.gather_objects([rollout.failures or Counter()]), Counter())
    names = [name for name in config.rewards if name in config.reward_failures]
    return {f"train/reward_{what}/{name}": total[f"{what}/{name}"] for name in names for what in ("retries", "dropped")}


def chooses(config: Config) -> bool:
    """Whether some images of a rollout may not train."""
    drops = any("drop" in policy for policy in config.reward_failures.values())
    return drops or config.drop_equal_groups or config.train_images is not None or config.algorithm.skips_zero


def watched(run: Path, iteration: int, found: Evaluation, config: Config) -> tuple[dict[str, float], Alarm | None]:
    """The metrics of an evaluation with their changes since the run's first one, and the alarm; alike on every rank."""

    first = run / "first_evaluation.safetensors"

    def compared() -> list[dict[str, float]]:
        return [compare(first, iteration, found.scores, found.distinct)] if distributed.is_main() else []

    metrics = {**found.metrics, **distributed.gather_objects(distributed.together(compared))[0]}
    told = alarm(metrics, config.rewards, config.eval_rewards)
    return {**metrics, ALARMS: len(told.fell) if told else 0}, told


def note_evaluation(state: State, metrics: Mapping[str, float]) -> None:
    """The best evaluation has the highest trained reward, mean over the evaluation sets, of those without an alarm.

    Where all that rose above the first evaluation alarm, it is the highest of these: a run that gained reward does not
    end with the weights it began with because a watched score gave way. Of equal ones the first.
    """
    rewards = [value for name, value in metrics.items() if name.split("/")[2:] == ["reward"]]
    score, alarmed = sum(rewards) / len(rewards), bool(metrics.get(ALARMS))
    first = state.first_score = score if state.first_score is None else state.first_score

    def rank(score: float, alarmed: bool) -> tuple[bool, bool, float]:
        return score > first, not alarmed, score

    if state.best_score is None or rank(score, alarmed) > rank(state.best_score, state.best_alarmed):
        state.best_score, state.best_alarmed, state.best_iteration = score, alarmed, state.iteration
    state.evaluated = state.iteration


def checkpoint_due(state: State, config: Config) -> bool:
    """Every so many iterations, after the last one, and where an evaluation was the best so far."""
    last = done(state, config) or state.iteration == state.best_iteration
    return schedule.saves(config, state.iteration, last)


def done(state: State, config: Config) -> bool:
    """Whether the run has had all its iterations, or all its time."""
    return state.iteration >= config.iterations or state.elapsed >= 60 * (config.max_minutes or math.inf)


def reward_sets(config: Config, functions: Mapping[str, Reward]) -> tuple[RewardSet, RewardSet]:
    """The rewards that train, and the same (not made twice) with those that are only watched at evaluations."""
    names = (*config.rewards, *config.eval_rewards)
    for name in functions:
        if name not in names:
            raise UserError(
                f"reward_functions gives {name!r}, which neither rewards nor eval_rewards names: it would not be used. "
                f"{did_you_mean(name, names)} A new one is trained by rewards={{{name!r}: 1.0}}"
            )
    reward = RewardSet.of(config, functions)
    return reward, RewardSet.of(config, {**functions, **reward.rewards}, watched=config.eval_rewards)


def load(config: Config, device: torch.device) -> VelocityModel:
    """The config's model."""
    return load_configured(config, schedule.loaded_sets(config), str(device))


def require_feasible(model: VelocityModel, config: Config, resume: bool) -> None:
    """Refuse what would fail later: too many processes, a model without the weights a run uses, a disk too small."""
    schedule.require_processes(config, distributed.world_size())
    missing = schedule.weight_sets(config) - set(model.weights.names)
    if missing:
        raise UserError(
            f"the run uses the weight sets {', '.join(sorted(missing))}, and the given model has only "
            f"{', '.join(model.weights.names)}; load it with sets=('ref', 'old', 'ema')"
        )
    if config.checkpoint_every and not resume:
        weights = sum(p.nbytes for p in model.weights.parameters())
        needed = checkpoint_space(config, weights, sum(name != "ref" for name in model.weights.names))
        checkpoint.require_free_space(config.out or "runs", needed)


def checkpoint_space(config: Config, weights: int, sets: int) -> int:
    """Bytes of all checkpoints that a run keeps at once. weights: bytes of a weight set; sets: how many are saved."""
    tensors = weights * (sets + 2)  # and Adam's two moments
    return tensors * (config.keep_checkpoints + 2)  # the best, and the one that is being written


def resolved(config: Config, dataset: GroupDataset) -> Config:
    """The group_size of the dataset's largest group; the noise scale is measured on groups of one size only."""
    same = len(set(dataset.sizes)) == 1
    return replace(config, group_size=max(dataset.sizes), noise_scale_every=config.noise_scale_every if same else 0)


def require_trainable(dataset: GroupDataset, model: VelocityModel, config: Config) -> None:
    """Refuse a dataset of another model, or of too few images for these processes."""
    distributed.together(lambda: dataset.require_fits(model))
    schedule.require_processes(config, distributed.world_size(), min(dataset.sizes))


def open_folder(config: Config, resume: bool, held: ExitStack) -> tuple[Path, Config, bool]:
    """The run folder, made or reopened by the first process, and whether it has a checkpoint; alike on all.

    held: keeps the folder locked
    """

    def opened() -> list[tuple[Path, Config, bool]]:
        if not distributed.is_main():
            return []
        folder = runfolder.reopened(config.out or "", config) if resume else runfolder.created(config)
        run, own = held.enter_context(folder)
        return [(run, own, checkpoint.latest(run) is not None)]

    return distributed.gather_objects(distributed.together(opened))[0]


def open_trackers(config: Config, run: Path, state: State, resume: bool) -> TrackerGroup:
    """The main process's trackers; a resumed run takes back rows that its checkpoint does not know."""
    if not distributed.is_main():
        return TrackerGroup([NullTracker()])
    return make_trackers(config.trackers, run, to_dict(config), state.iteration if resume else None, state.evaluated)


def make_optimizer(model: VelocityModel, config: Config) -> torch.optim.Optimizer:
    """AdamW over the policy's parameters."""
    o, parameters = config.optimizer, model.weights.parameters()
    if o.name == "adamw8bit":
        try:
            from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(f"optimizer.name='adamw8bit' needs torchao ({error}): pip install 'dgpo[8bit]'") from error
        return AdamW8bit(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    return torch.optim.AdamW(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, step: int, config: Config) -> float:
    """Set and return the rate of this step, counted from 0."""
    rate = learning_rate(step, config.optimizer)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao compiles the step with it
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return rate


def learning_rate(step: int, o: Optimizer) -> float:
    """Linear warm-up, then half a cosine down to a tenth, or constant."""
    if step < o.warmup_steps:
        return o.lr * (step + 1) / o.warmup_steps
    passed = min(1.0, (step - o.warmup_steps) / o.decay_steps) if o.decay_steps else 0.0
    return o.lr * (1 - 0.9 * (1 - math.cos(math.pi * passed)) / 2)


def save(run: Path, model: VelocityModel, optimizer: torch.optim.Optimizer, state: State, config: Config) -> None:
    """Write a checkpoint; refuse, on all ranks, one whose weights are not finite."""

    def saved() -> None:
        if not distributed.is_main():
            return
        bad = not_finite(model, optimizer)
        if bad:
            raise NonFiniteError(f"the policy has exploded: {', '.join(bad)} not finite after step {state.step}")
        write_checkpoint(run, model, optimizer, state, config)

    distributed.together(saved)


def write_checkpoint(
    run: Path, model: VelocityModel, optimizer: torch.optim.Optimizer, state: State, config: Config
) -> None:
    """Everything that a resumed run needs, its config, and the averaged LoRA as stock diffusers reads it."""

    def extra(folder: Path) -> None:
        save_yaml(config, folder / runfolder.CONFIG)
        if config.finetune == "lora":
            model.weights.export(folder / "lora", "ema")

    checkpoint.save(run, state.iteration, saved_tensors(model, optimizer), asdict(state), extra)
    checkpoint.prune(run, config.keep_checkpoints, {state.best_iteration})


def not_finite(model: VelocityModel, optimizer: torch.optim.Optimizer) -> list[str]:
    """The weight sets, or `optimizer`, that hold NaN or infinity."""
    return checkpoint.not_finite(saved_tensors(model, optimizer))


def saved_tensors(model: VelocityModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds: every weight set but the frozen one, and the optimizer's moments."""
    names = [name for name, _ in model.weights.named_parameters()]
    sets = {name: model.weights.tensors(name) for name in model.weights.names if name != "ref"}
    return {**sets, "optimizer": checkpoint.optimizer_tensors(optimizer, names)}


def restore(run: Path, model: VelocityModel, optimizer: torch.optim.Optimizer) -> State:
    """Take over the newest checkpoint of a run."""
    path = checkpoint.latest(run)
    assert path is not None
    tensors, values = checkpoint.load(path)
    checkpoint.require_finite(path, tensors)
    names = [name for name, _ in model.weights.named_parameters()]
    checkpoint.load_optimizer_tensors(optimizer, names, tensors.pop("optimizer"))
    missing = {*model.weights.names} - {"ref", *tensors}
    if missing:
        raise UserError(f"{path} holds no weights {', '.join(missing)}; resume with the model that the run began with")
    for name, part in tensors.items():
        model.weights.load(name, part)
    return replace(State(**values), noise=NoiseAverage(**values["noise"]))


def finish(run: Path, model: VelocityModel, state: State, config: Config) -> None:
    """The report, and of a run that is done the averaged weights as stock diffusers reads them, with a model card."""
    write_report(run)
    if done(state, config) and config.checkpoint_every:
        model.weights.export(run / "final", "ema")
        write_card(run, run / "final")


def upload(run: Path, state: State, config: Config) -> None:
    """The final weights to the hub, if the config says so."""
    if done(state, config) and config.checkpoint_every and config.push_to_hub:
        print(f"Uploaded: {push(run / 'final', config.push_to_hub, config.hub_private)}")
