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

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dgpo import distributed
from dgpo.config import Config
from dgpo.data.groups import GroupDataset
from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.data.sampler import PromptSampler
from dgpo.models import VelocityModel
from dgpo.models.text_cache import CondCache
from dgpo.report.grids import write_samples
from dgpo.rewards.base import Reward
from dgpo.rewards.combine import check_run
from dgpo.run import folder as runfolder
from dgpo.run.console import Console
from dgpo.run.hub import require_login
from dgpo.run.interrupt import Interrupt
from dgpo.run.stopwatch import Stopwatch
from dgpo.run.trackers import closed, require_trackers
from dgpo.training import schedule
from dgpo.training.compare import constant_scores
from dgpo.training.evaluate import evaluate
from dgpo.training.metrics import describe, note_evaluation, watched
from dgpo.training.optim import make_optimizer
from dgpo.training.rescue import rescue
from dgpo.training.saving import finish, not_finite, restore, save, upload, write_checkpoint
from dgpo.training.setup import (
    load,
    open_folder,
    open_trackers,
    require_feasible,
    require_trainable,
    resolved,
    reward_sets,
)
from dgpo.training.sources import collect, replay
from dgpo.training.state import State, checkpoint_due, done
from dgpo.training.update import improve, to_train
from dgpo.utils.devices import device_of, precision_of


class Result(NamedTuple):
    """What a finished or interrupted run leaves."""

    run: Path  # the run folder
    iterations: int  # finished
    metrics: dict[str, float]  # of the last evaluation
    interrupted: bool


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
