"""What a person sees of a run: the plan before it, the phase under way, one line an iteration, evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich import progress
from rich.console import Console as RichConsole

from dgpo import distributed
from dgpo.config import Config
from dgpo.data.prompts import sources_of
from dgpo.data.sampler import repeats
from dgpo.models import VelocityModel
from dgpo.run import console_log
from dgpo.run.callbacks import Callback, Evaluated, Progress
from dgpo.run.metric_names import eval_names, without_repeats
from dgpo.run.pace import PhaseProgress, TimeLeft, span
from dgpo.utils.devices import described
from dgpo.utils.people import resuming
from dgpo.utils.progress import Tell


class RunCounts(NamedTuple):
    """What the rules of the loop say of a run in numbers."""

    prompts: int  # that train, or groups of a dataset
    network_forwards: int  # in an iteration
    evaluations_ahead: Callable[[int, int], int]  # once an iteration is done, in a run that ends with another
    evaluated_images: int = 0  # of an evaluation
    people: bool = False  # whether the run waits for their answers


class Console(Callback):
    """Two live lines in a terminal, plain lines elsewhere, silence on processes other than the first.

    The lines are kept in the run folder too (console_log.py), without those of phases.
    """

    def __init__(self, config: Config, model: VelocityModel, counts: RunCounts, doubts: Sequence[str] = ()) -> None:
        """doubts: what the run goes on in spite of"""
        self._config, self._model, self._counts, self._doubts = config, model, counts, doubts
        self._out = _output()
        self._bar = _live(self._out)
        self._whole = self._bar.add_task("", total=config.iterations, text="")
        self._phase = self._bar.add_task("", total=None, text="", visible=False)
        self._progress, self._left = PhaseProgress(), TimeLeft(config, counts.evaluations_ahead)
        self._watched: tuple[str, int] | None = None  # a score of the last evaluation, and the iteration before it
        self._report_named = False
        self._foretold = False  # whether it was said how long the run will take
        self._constant: set[str] = set()
        self._folder: Path | None = None  # of the run, once it has begun

    def on_start(self, run: Progress) -> None:
        self._folder = run.folder if distributed.is_main() else None
        for line in (*self.plan(), *self._begins(run)):
            self._print(line)
        self.warn(self._doubts)
        self._show_iteration(run.iteration, "")
        self._bar.start()

    def close(self) -> None:
        self._bar.update(self._phase, visible=False)
        self._bar.stop()

    def plan(self) -> list[str]:
        """What will be done, before anything is."""
        c, images = self._config, self._config.num_groups * self._config.group_size
        again = repeats(c.num_groups, self._counts.prompts, c.offline is not None)
        of = "groups from" if again else "of"
        drawn = (
            f"{self._counts.prompts} prompts x {c.group_size}"
            if c.offline is None
            else f"the dataset's {self._counts.prompts} groups x up to {c.group_size}"
        )
        limit = "" if c.max_minutes is None else f" or {c.max_minutes:g} minutes"
        size = "" if c.sampling.resolution is None else f" of {c.sampling.resolution} pixels a side"
        trainable = sum(shape.numel() for shape in self._model.weights.shapes.values())
        return [
            f"{c.called}: {type(c.algorithm).__name__} on {c.model or 'a model of your own'}, {_kinds(c)}",
            f"  trains {trainable:,} parameters ({c.finetune}), "
            f"{described(c.dtype, self._model.device)} on {self._model.device}, "
            f"{distributed.world_size()} process(es)",
            f"  an iteration: {c.num_groups} {of} {drawn} images = {images} images{size}, "
            f"{c.updates_per_rollout} optimizer step(s), {self._counts.network_forwards:,} network forwards",
            *([f"  {again}"] if again else []),
            f"  {c.iterations} iterations{limit}; run folder {c.out}",
        ]

    def _begins(self, run: Progress) -> Iterator[str]:
        """From where a resumed run goes on, or what comes before the first iteration of a new one."""
        c = self._config
        if run.done:
            over = (
                f"all its {c.iterations} iterations are done; a larger --iterations continues it"
                if run.iteration >= c.iterations
                else f"its {c.max_minutes:g} minutes are over; a larger --max-minutes, or None, continues it"
            )
            yield f"  finished: {over}, with {resuming(c.rewards, run.folder)} (in Python, with resume=True)"
        elif run.iteration:
            yield f"  goes on after iteration {run.iteration}"
        elif c.eval_every and c.eval_prompts and self._counts.evaluated_images:
            later = "" if self._counts.people else ". How long the whole takes is told after the first iterations"
            yield (
                f"  begins with an evaluation of the model before any training: {self._counts.evaluated_images:,} "
                f"images{later}"
            )
        if self._counts.people and not run.done:
            yield f"  people pick its pictures on the page that dgpo teach opens, or at: dgpo studio {run.folder}"

    def on_end(self, run: Progress) -> None:
        """Say where the page and the weights are, and which weights were evaluated as better."""
        if self._config.report:
            self._print(f"Report: {run.folder}/report.html")
        if not run.done or not self._config.checkpoint_every:
            return
        best, told = run.best_iteration, f"Weights: {run.folder}/final, after iteration {run.iteration}"
        if best == run.iteration and best:
            told += ", whose evaluation was the best"
        if 0 < best < run.iteration:
            told += f". The best evaluation was that after iteration {best}: its weights are in {run.folder}/best"
        if best == 0 < run.iteration:
            told += ". No evaluation was better than the one before training"
        self._print(told)

    def warn(self, texts: Iterable[str]) -> None:
        """Print warnings."""
        for text in texts:
            self._print(f"warning: {text}", "yellow")

    def constant(self, iteration: int, scores: Mapping[str, float]) -> None:
        """These rewards told no two images of a rollout apart; said once of each."""
        self.warn(
            f"the reward {name!r} gave all images of iteration {iteration} the score {score:g}, from which nothing can "
            "be learned. It is said once; see train/frac_reward_zero_std whether it stays so"
            for name, score in scores.items()
            if name not in self._constant
        )
        self._constant |= {*scores}

    def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
        """Show it in a terminal; elsewhere print a line now and then."""
        if not distributed.is_main():
            return
        if phase == "evaluating":
            self._left.evaluating()
        text = self._progress.text(phase, done, total, foretell=not self._left.known)
        if self._out.is_terminal:
            self._bar.update(
                self._phase, description=phase, completed=done, total=total or None, text=text, visible=True
            )
        elif self._progress.due(phase, done, total):
            self._show(f"  {phase} {text}".rstrip())

    def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
        """Print the scores with their change since the run's first evaluation, and the alarm."""
        metrics, iteration = evaluated.metrics, run.iteration
        names = without_repeats(eval_names(metrics), self._config.rewards, metrics.get)
        whole = [name for name in names if not name.tag]
        for name in self._config.eval_prompts:
            scores = [score for score in whole if score.eval_set == name]
            texts = [f"{score.score} {metrics[score.key]:.3f}{_change(metrics, score.key)}" for score in scores]
            self._print(f"evaluation after iteration {iteration}, {name}: {', '.join(texts)}", style="cyan")
        watched = next((f"{k[5:]} {metrics[k]:.3f}" for k in self._headlines() if k in metrics), None)
        self._watched = None if watched is None else (watched, iteration)
        if self._config.report and not self._report_named:
            self._report_named = True
            self._print(f"  the report is {run.folder}/report.html; it is written anew at every evaluation")
        if evaluated.alarm:
            self._print(f"alarm after iteration {iteration}: {evaluated.alarm}", style="bold red")
            if self._config.stop_on_alarm and not evaluated.last:
                self._print("  stop_on_alarm is on: the run is saved and stops here", style="bold red")

    def on_iteration(self, run: Progress, metrics: dict[str, float]) -> None:
        first = not self._left.known
        self._left.iterated(run.iteration, metrics)
        line = "  ".join(self._numbers(run.iteration, metrics))
        if self._counts.people:  # nobody knows when they will answer
            pass
        elif self._left.exact and not self._foretold:
            self._foretold, took = True, self._left.evaluation
            evaluation = "" if took is None else f", an evaluation {span(took)}"
            self._print(f"  an iteration takes about {span(self._left.iteration)}{evaluation}; {self._left}")
        elif first:
            self._print(
                f"  the first iteration took {span(metrics['time/iteration'])}. It also measured the gradient noise "
                f"scale, which takes longer and comes every {self._config.noise_scale_every} optimizer steps; "
                f"{self._left}"
            )
        self._show_iteration(run.iteration, line)
        whole = f"iteration {run.iteration}/{self._config.iterations}  {line}"
        if self._out.is_terminal:
            self._keep(whole)
        else:
            self._print(whole)

    def _numbers(self, iteration: int, metrics: Mapping[str, float]) -> Iterator[str]:
        """What an iteration has to tell. What is switched off is not shown, and what is old says so."""
        yield f"reward {metrics['train/reward_mean']:.3f}"
        if self._watched is not None:
            yield f"{self._watched[0]} ({_age(iteration - self._watched[1])})"
        if "train/grad_norm" not in metrics:
            yield "nothing trained"
        elif getattr(self._config.algorithm, "clip_range", None) is not None and "train/clip_fraction" in metrics:
            yield f"clip {metrics['train/clip_fraction']:.3f}"
        if "train/grad_norm" in metrics:
            yield f"grad {metrics['train/grad_norm']:.3f}"
        yield f"{self._config.num_groups * self._config.group_size / metrics['time/iteration']:.1f} images/s"
        if not self._counts.people:
            yield str(self._left)

    def _show_iteration(self, iteration: int, text: str) -> None:
        name = f"iteration {iteration}/{self._config.iterations}"
        self._bar.update(self._whole, description=name, completed=iteration, text=text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._show(text, style)
        self._keep(text)

    def _keep(self, text: str) -> None:
        if self._folder is not None:
            console_log.add_line(self._folder, text)

    def _show(self, text: str, style: str | None = None) -> None:
        self._out.print(text, style=style)
        self._progress.printed()

    def _headlines(self) -> Iterator[str]:
        """The trained score to show while training goes on: a strict one, else the only one, else the sum."""
        trained = [*self._config.rewards]
        strict = [name for name in trained if name.endswith("strict")]
        for score in (*strict, *(trained if len(trained) == 1 else []), "reward"):
            for name in self._config.eval_prompts:
                yield f"eval/{name}/{score}"


def say(text: str) -> None:
    """Say what is under way before a run, or a command that draws, has its own lines. Only the first process does."""
    if distributed.is_main():
        _output().print(text)


@contextmanager
def shown_progress() -> Iterator[Tell]:
    """Show on stderr how far a command is while the block works: one live line in a terminal, plain lines elsewhere."""
    out, phases = _output(stderr=True), PhaseProgress()
    with _live(out, transient=True) as bar:
        line = bar.add_task("", total=None, text="", visible=False)

        def tell(phase: str, done: int, total: int) -> None:
            text = phases.text(phase, done, total, foretell=True)
            if out.is_terminal:
                bar.update(line, description=phase, completed=done, total=total or None, text=text, visible=True)
            elif phases.due(phase, done, total):
                out.print(f"  {phase} {text}".rstrip())
                phases.printed()

        yield tell


def _live(out: RichConsole, transient: bool = False) -> progress.Progress:
    """Live lines of a phase, its bar and its text; nothing where `out` is no terminal."""
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=20),
        progress.TextColumn("{task.fields[text]}", markup=False),
        console=out,
        disable=not out.is_terminal,
        refresh_per_second=4,
        transient=transient,
    )


def _kinds(config: Config) -> str:
    if config.offline is not None:
        return f"learning offline from the dataset {config.offline}; nothing is sampled but for evaluations"
    source = ", ".join(sources_of(config.prompts)) or f"{len(config.prompts)} prompts"
    return f"prompts {source}, reward {' + '.join(f'{weight:g} {name}' for name, weight in config.rewards.items())}"


def _change(metrics: Mapping[str, float], key: str) -> str:
    return f" ({metrics[f'{key}/change']:+.3f})" if f"{key}/change" in metrics else ""


def _age(iterations: int) -> str:
    return f"{iterations} iteration{'s' * (iterations != 1)} ago"


def _output(stderr: bool = False) -> RichConsole:
    # ":train:" would be an emoji, and a path in brackets a style
    quiet = not distributed.is_main()
    return RichConsole(stderr=stderr, quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)
