"""A run in progress: its state, and what happens between two iterations: evaluate, save, tell, stop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dgpo import distributed
from dgpo.config import Config
from dgpo.data.prompts import PromptSet
from dgpo.models.text_cache import CondCache
from dgpo.report import ReportWriter
from dgpo.report.grids import write_samples
from dgpo.run import checkpoint, failure, prompt_lists, requests
from dgpo.run import folder as runfolder
from dgpo.run.callbacks import Callback, Callbacks, Evaluated, StopOnAlarm
from dgpo.run.console import Console, RunCounts
from dgpo.run.grace import Grace
from dgpo.run.interrupt import REQUEUE, Interrupt
from dgpo.run.stopwatch import Stopwatch
from dgpo.run.trackers import Tracking
from dgpo.training import saving, schedule
from dgpo.training.background import Background
from dgpo.training.evaluate import evaluate, shown
from dgpo.training.geometry import network_forwards
from dgpo.training.metrics import ConstantRewards, note_evaluation, watched
from dgpo.training.rescue import rescue
from dgpo.training.setup import Inputs, Setup, open_folder, open_trackers
from dgpo.training.sources import Replayed, Sampled, Source
from dgpo.training.state import State, checkpoint_due, done
from dgpo.training.taught import Taught
from dgpo.training.update import improve, to_train
from dgpo.types import Rollout
from dgpo.utils.people import resuming


class Result(NamedTuple):
    """What a finished or interrupted run leaves."""

    run: Path  # the run folder
    iterations: int  # finished
    metrics: dict[str, float]  # of the last evaluation
    interrupted: bool
    requeue: bool = False  # interrupted by a scheduler's signal, after which the same command may be started again


class Running:
    """What `train` moves from one iteration to the next."""

    def __init__(
        self, setup: Setup, folder: Path, state: State, callbacks: Callbacks, interrupt: Interrupt, held: ExitStack
    ) -> None:
        """held: what keeps the folder locked"""
        self.config, self.model, self.optimizer = setup.config, setup.model, setup.optimizer
        self._rollout_model = setup.rollout_model
        self.folder, self.state, self.callbacks = folder, state, callbacks
        self.encode = CondCache(self.model, self.config.prompt_cache, tell=self.tell)
        self.clock = Stopwatch(self.model.device, self.tell)
        self.source = source_of(setup, self.encode, self.clock, folder)
        self.source.sampler.position = state.position
        self._inputs, self._interrupt = setup.inputs, interrupt
        self._saved = state.iteration if self.config.checkpoint_every or setup.resume else -1
        self._stop, self._started, self._asked = False, 0.0, 0
        alone = not self.model.weights.sharded
        close = partial(_close, callbacks, held)
        self.grace = Grace(interrupt, self.config.grace_seconds, self._save_alone, close, alone)
        self._background = Background()
        self.optimizer.register_step_pre_hook(lambda *_: self.grace.change())
        self._latest: dict[str, float] = {}

    @property
    def iteration(self) -> int:
        """Finished iterations."""
        return self.state.iteration

    @property
    def best_iteration(self) -> int:
        """The iteration after which the best evaluation so far was; -1 before the first."""
        return self.state.best_iteration

    @property
    def done(self) -> bool:
        """Whether the run has had all its iterations, or all its time."""
        return done(self.state, self.config)

    @property
    def cut(self) -> bool:
        """Whether a scheduler ended the run between its last iteration and the evaluation of that."""
        due = schedule.evaluates(self.config, self.iteration, self.done)
        return self._asked == REQUEUE and due and self.state.evaluated < self.iteration

    def tell(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Tell the callbacks, and the other processes, how far a phase is."""
        distributed.at(phase)
        self.callbacks.on_progress(self, phase, done, total)

    def stop(self) -> None:
        """Save and end the run before its next iteration. Must be called on every process alike."""
        self._stop = True

    def finished(self) -> bool:
        """Evaluate and save where that is due or asked for, and return whether the run ends here.

        Where the next rollout waits for people, so does this, and goes on hearing what is asked for.
        """
        while not (ends := self._ends()) and not self.source.ready(self.iteration):
            pass
        self._started = time.perf_counter()
        self.grace.begin("iteration")
        return ends

    def _ends(self) -> bool:
        last = self.done
        asked = requests.take(self.folder)
        due = schedule.evaluates(self.config, self.iteration, last)
        self._asked = self._interrupt.requested()
        due = due or (requests.EVALUATE in asked and self._can_evaluate)
        if due and self.state.evaluated < self.iteration and self._asked != REQUEUE:  # a resume makes up for it
            self._evaluate(last)
            self._asked = self._interrupt.requested()
        self._interrupt.defer()
        self._stop = bool(self._asked) or requests.STOP in asked or self._stop
        save = self._stop or requests.SAVE in asked or checkpoint_due(self.state, self.config)
        ends = last or self._stop
        self._put_in_place(wait=False)
        if self._saved < self.iteration and save:
            self.save()
        self._put_in_place(wait=ends)
        return ends

    def save(self) -> None:
        """Write a checkpoint, or begin to, when the last one is on disk."""
        self._put_in_place(wait=True)
        self.tell("saving")
        what = (self.folder, self.model, self.optimizer, self.state, self.config)
        if self.config.background_saving:
            longest = self.grace.save_seconds
            with self.grace.saving():
                saving.begin(self._background, *what)
                self._saved = self.iteration
            self.grace.save_seconds = max(longest, self.grace.save_seconds)
            return
        with self.grace.saving():
            path = saving.save(*what)
            self._saved = self.iteration
        self.callbacks.on_checkpoint(self, path)

    def _put_in_place(self, wait: bool) -> None:
        """Tell of the checkpoint that a thread has written; raise, on all ranks, what made one fail."""
        if not self._background.busy:
            return
        if wait:
            self.tell("saving")
        path = self._background.finish(wait)
        if path is not None:
            self.grace.save_seconds = self._background.seconds
            self.callbacks.on_checkpoint(self, path)

    def written(self) -> AbstractContextManager[None]:
        """A context after which nothing is left to write."""
        return self._background.ended()

    def improve(self, rollout: Rollout) -> dict[str, float]:
        """Take all optimizer steps of a rollout, and return their metrics."""
        with self.clock.phase("update"):
            images = to_train(rollout, self.encode, self.config)
            return improve(self._rollout_model, self.optimizer, images, self.state, self.config, self.tell)

    def advance(self, metrics: dict[str, float]) -> None:
        """Count the iteration as done, and tell its metrics."""
        self.grace.change()
        state = self.state
        state.forwards += int(metrics.pop("forwards"))
        state.iteration += 1
        state.position = self.source.sampler.position
        state.first_step = state.step
        # the main process's, on all alike: whether the time is up must not differ between them
        seconds = distributed.gather_objects([time.perf_counter() - self._started])[0]
        state.elapsed += seconds
        times = {**self.clock.read(), "time/iteration": seconds, "time/elapsed": state.elapsed}
        self.callbacks.on_iteration(self, metrics | times | {"train/forwards": state.forwards})
        self.grace.settle()
        self.grace.end()

    def result(self) -> Result:
        """Say where the run stands."""
        interrupted = not self.done or self.cut
        return Result(self.folder, self.iteration, self._latest, interrupted, interrupted and self._asked == REQUEUE)

    def encode_all(self) -> None:
        """Encode every prompt that the run can need, and let the encoders go."""
        self.encode.know_all(self._inputs.texts)

    @property
    def _can_evaluate(self) -> bool:
        """Whether the run evaluates at all: one that does not has loaded nothing for it."""
        return schedule.evaluates(self.config, self.iteration, last=True)

    def _evaluate(self, last: bool) -> None:
        """Score the averaged weights, and compare them with the run's first evaluation."""
        self.grace.begin("evaluation")
        with self.clock.phase("eval"):
            sets, reward = evaluated(self._inputs, self.config), self._inputs.eval_reward
            evaluation = evaluate(self.model, self.encode, sets, reward, self.config, tell=self.tell)
        self._interrupt.defer()  # what is written now is written whole
        self.tell("reporting")
        self._latest, alarm = watched(self.folder, self.iteration, evaluation, self.config)
        samples, picture = evaluation.samples, None
        if distributed.is_main() and samples.prompts:
            picture = write_samples(self.folder, self.iteration, samples.images, samples.prompts, samples.scores)
        spent = {"time/elapsed": self.state.elapsed, "train/forwards": self.state.forwards}
        metrics = {**self._latest, **self.clock.read(), **spent}
        alarmed = str(alarm) if alarm else None
        self.callbacks.on_evaluation(
            self, Evaluated(metrics, samples.images, samples.prompt_of_each, picture, alarmed, last)
        )
        self.grace.change()
        note_evaluation(self.state, self._latest)
        self.grace.settle()
        self.grace.end()

    def _save_alone(self, whole: bool) -> str:
        """Make the last finished iteration a checkpoint, without other processes, and say how to go on.

        whole: whether weights and state are that iteration's, which `grace` sees to
        """
        failed = "" if self.model.weights.sharded else self._failed_to_write()
        state = replace(self.state, step=self.state.first_step)  # a step that is announced has not been taken
        bad = saving.not_finite(self.model, self.optimizer) if whole else []
        if whole and not bad and self._saved < state.iteration:
            saving.write_checkpoint(self.folder, self.model, self.optimizer, state, self.config)
        newest = checkpoint.latest(self.folder)
        where = "There is no checkpoint, so it begins anew" if newest is None else f"The last checkpoint is {newest}"
        why = f"Weights are not finite ({', '.join(bad)}) and were not saved. " if bad else ""
        return f"{failed}{why}{where}. Go on with: {resuming(self.config.rewards, self.folder)}"

    def _failed_to_write(self) -> str:
        """Wait for the checkpoint that a thread writes, and say what made it fail; "" where nothing has."""
        try:
            self._background.wait()
        except Exception as error:
            self._saved = -1
            return f"A checkpoint could not be written ({type(error).__name__}: {error}). "
        return ""


def _close(callbacks: Callbacks, held: ExitStack) -> None:
    """End what a process leaves behind when it cannot return from the loop."""
    with suppress(Exception):
        callbacks.close()
    held.close()


@contextmanager
def start(setup: Setup, callbacks: Sequence[Callback], interrupt: Interrupt) -> Iterator[Running]:
    """Open the run folder, take over its newest checkpoint, and keep what is whole when the block fails.

    After the block the weights are exported and, where the config says so, uploaded.
    """
    with ExitStack() as held:
        folder, config, resumed = open_folder(setup.config, setup.resume, setup.overwrite, held)
        setup = replace(setup, config=config, resume=resumed)
        model, optimizer, inputs = setup.model, setup.optimizer, setup.inputs
        lists = prompt_lists.hashes(inputs.eval_sets, inputs.prompts)
        if resumed:
            distributed.together(lambda: prompt_lists.require_same(folder, lists, "start a new run with the new ones"))
        inputs.reward.save_failures_to = inputs.eval_reward.save_failures_to = folder / "failures"
        started = time.monotonic()  # reading a checkpoint takes about as long as writing it
        state = saving.restore(folder, model, optimizer) if resumed else State()
        told = Callbacks([*built_in(setup), *callbacks])
        if config.checkpoint_every and not resumed:  # so that a run killed in its first evaluation can be resumed
            saving.save(folder, model, optimizer, state, config)
        run = Running(setup, folder, state, told, interrupt, held)
        run.grace.save_seconds = time.monotonic() - started
        told.insert(0, Tracking(open_trackers(config, folder, state, resumed)))
        if distributed.is_main():
            runfolder.write_config(folder, config)  # now that nothing refuses it
            prompt_lists.keep(folder, lists)
        requests.clear(folder)
        failure.clear(folder)
        rescuers = saving.rescuers(model, optimizer, state, config)
        resume = resuming(config.rewards, folder)
        interrupt.listen(f" before the first iteration; nothing is lost. Go on with: {resume}")
        if state.iteration or distributed.world_size() > 1:  # several processes end together, and so agree first
            interrupt.defer()
        with rescue(folder, state, *rescuers, model.weights.sharded, resume), told.closed():
            with run.grace, run.written():
                told.on_start(run)
                if config.free_text_encoders:
                    run.encode_all()
                yield run
            run.tell("saving")
            if not run.cut:
                saving.finish(folder, model, state, config)
            told.on_end(run)
        if distributed.is_main() and not run.cut:
            saving.upload(folder, state, config)


def built_in(setup: Setup) -> list[Callback]:
    """The callbacks that every run has, beside its trackers."""
    config, inputs = setup.config, setup.inputs
    counts = RunCounts(
        len(inputs.prompts),
        network_forwards(config, distributed.world_size()),
        partial(schedule.evaluations_ahead, config),
        sum(len(some) * config.images_of(name) for name, some in evaluated(inputs, config).items()),
        inputs.people,
    )
    console = Console(config, setup.model, counts, inputs.doubts)
    told: list[Callback] = [console, ConstantRewards(console.constant)]
    if config.stop_on_alarm:
        told.append(StopOnAlarm())
    if config.report and distributed.is_main():
        told.append(ReportWriter())
    return told


def evaluated(inputs: Inputs, config: Config) -> dict[str, PromptSet]:
    """The sets of evaluations. Where a person alone judges, only pictures to be looked at are drawn."""
    return inputs.eval_sets if inputs.eval_reward.rewards or not inputs.eval_sets else shown(inputs.eval_sets, config)


def source_of(setup: Setup, encode: CondCache, clock: Stopwatch, folder: Path) -> Source:
    """Where the run's rollouts come from."""
    model, inputs, config = setup.rollout_model, setup.inputs, setup.config
    if inputs.people:
        return Taught(setup, encode, clock, folder)
    if inputs.dataset is not None:
        return Replayed(model, inputs.dataset, encode, config, clock)
    return Sampled(model, inputs.reward, inputs.prompts, encode, config, clock)
