"""What a run tells while it goes on. The console, the trackers, the report and the alarm's stop are callbacks too.

Derive from `Callback`, override what you want to hear, and give an instance to `train(config, callbacks=[...])`. In a
run of several processes every process calls its own callbacks alike, with the same metrics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from dgpo.config import Config
from dgpo.types import Rollout


class Evaluated(NamedTuple):
    """One evaluation, compared with the run's first."""

    metrics: dict[str, float]  # eval/SET/SCORE and, below it, change, stderr, ...; seconds
    images: Tensor  # (n, 3, H, W) in [0, 1], the first images of the first prompts, from the same noise each time
    prompts: list[str]  # n, of each image
    picture: Path | None  # the PNG of these images, in the run folder; None without images
    alarm: str | None  # which held-out scores fell while a trained one rose
    last: bool  # whether the run ends with this evaluation


class Progress(Protocol):
    """The run, as a callback sees it."""

    @property
    def config(self) -> Config: ...

    @property
    def folder(self) -> Path:
        """The run folder."""
        ...

    @property
    def iteration(self) -> int:
        """Finished iterations."""
        ...

    @property
    def best_iteration(self) -> int:
        """The iteration after which the best evaluation so far was; -1 before the first."""
        ...

    @property
    def done(self) -> bool:
        """Whether the run has had all its iterations, or all its time."""
        ...

    def stop(self) -> None:
        """Save and end the run before its next iteration, as Ctrl-C does. Must be called on every process alike."""
        ...


class Callback:
    """Hears of a run's events. Every method does nothing unless it is overridden."""

    def on_start(self, run: Progress) -> None:
        """The run begins, or goes on after a resume. Nothing has been drawn yet."""

    def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
        """The run is at `done` of `total` in a phase, of those in `dgpo.utils.progress.UNITS`; 0 of 0 if not counted.

        Often called, and in the middle of the work, where processes cannot wait for each other: be quick.
        """

    def on_rollout(self, run: Progress, rollout: Rollout) -> None:
        """A rollout is scored, on this process its own share; the update follows.

        Groups that gave way to groups of other prompts are in `rollout.replaced`, without their images.
        """

    def on_iteration(self, run: Progress, metrics: dict[str, float]) -> None:
        """A rollout and its updates are done."""

    def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
        """The averaged weights were evaluated."""

    def on_checkpoint(self, run: Progress, folder: Path) -> None:
        """A checkpoint was written; with `background_saving` it may be of an earlier iteration."""

    def on_end(self, run: Progress) -> None:
        """The run ends, with all its iterations or before. Not called after a failure."""

    def close(self) -> None:
        """The last call, after a failure too."""


class Callbacks(Callback, list[Callback]):
    """Several callbacks as one, each told in turn."""

    def on_start(self, run: Progress) -> None:
        for callback in self:
            callback.on_start(run)

    def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
        for callback in self:
            callback.on_progress(run, phase, done, total)

    def on_rollout(self, run: Progress, rollout: Rollout) -> None:
        for callback in self:
            callback.on_rollout(run, rollout)

    def on_iteration(self, run: Progress, metrics: dict[str, float]) -> None:
        for callback in self:
            callback.on_iteration(run, metrics)

    def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
        for callback in self:
            callback.on_evaluation(run, evaluated)

    def on_checkpoint(self, run: Progress, folder: Path) -> None:
        for callback in self:
            callback.on_checkpoint(run, folder)

    def on_end(self, run: Progress) -> None:
        for callback in self:
            callback.on_end(run)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close all after the block. If that fails after the block has failed, the block's error is the one to tell."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.close()
            raise
        self.close()

    def close(self) -> None:
        """Close each, whatever another one of them raises."""
        with ExitStack() as stack:
            for callback in self:
                stack.callback(callback.close)


class StopOnAlarm(Callback):
    """Ends the run where an evaluation alarms."""

    def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
        if evaluated.alarm and not evaluated.last:
            run.stop()
