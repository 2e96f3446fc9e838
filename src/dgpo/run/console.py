"""What a person sees of a run: the plan before it, one line an iteration, evaluations, how to go on afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich import progress
from rich.console import Console as RichConsole

from dgpo import distributed
from dgpo.config import Config
from dgpo.models import VelocityModel
from dgpo.run.callbacks import Callback, Evaluated, Progress
from dgpo.run.metric_names import eval_names
from dgpo.utils.devices import described


class Console(Callback):
    """A live line in a terminal, plain lines elsewhere, silence on ranks other than the first."""

    def __init__(
        self, config: Config, model: VelocityModel, num_prompts: int, evaluations: int, doubts: Sequence[str] = ()
    ) -> None:
        """evaluations: of the network in an iteration; doubts: what the run goes on in spite of"""
        self._config, self._model, self._doubts = config, model, doubts
        self._num_prompts, self._evaluations = num_prompts, evaluations
        # ":train:" would be an emoji, and a path in brackets a style
        self._out = RichConsole(
            quiet=not distributed.is_main(), highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        self._bar = progress.Progress(
            progress.TextColumn("iteration"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(bar_width=20),
            progress.TextColumn("{task.description}", markup=False),
            console=self._out,
            disable=not self._out.is_terminal,
        )
        self._task = self._bar.add_task("", total=config.iterations)
        self._watched = ""
        self._timed = False
        self._told_encoding = False
        self._constant: set[str] = set()

    def on_start(self, run: Progress) -> None:
        for line in self.plan():
            self._out.print(line)
        self.warn(self._doubts)
        self._bar.start()

    def close(self) -> None:
        self._bar.stop()

    def plan(self) -> list[str]:
        """What will be done, before anything is."""
        c, images = self._config, self._config.num_groups * self._config.group_size
        drawn = (
            f"{self._num_prompts} prompts x {c.group_size}"
            if c.offline is None
            else f"the dataset's {self._num_prompts} groups x up to {c.group_size}"
        )
        limit = "" if c.max_minutes is None else f" or {c.max_minutes:g} minutes"
        trainable = sum(p.numel() for p in self._model.weights.parameters())
        return [
            f"{c.name}: {type(c.algorithm).__name__} on {c.model}, {_kinds(c)}",
            f"  trains {trainable:,} parameters ({c.finetune}), "
            f"{described(c.dtype, self._model.device)} on {self._model.device}, "
            f"{distributed.world_size()} process(es)",
            f"  an iteration: {c.num_groups} of {drawn} images = {images} images, "
            f"{c.updates_per_rollout} optimizer step(s), {self._evaluations:,} network evaluations",
            f"  {c.iterations} iterations{limit}; run folder {c.out}",
        ]

    def warn(self, texts: Iterable[str]) -> None:
        """Print warnings."""
        for text in texts:
            self._out.print(f"warning: {text}", style="yellow")

    def constant(self, iteration: int, scores: Mapping[str, float]) -> None:
        """These rewards told no two images of a rollout apart; said once of each."""
        self.warn(
            f"the reward {name!r} gave all images of iteration {iteration} the score {score:g}, from which nothing can "
            "be learned. It is said once; see train/frac_reward_zero_std whether it stays so"
            for name, score in scores.items()
            if name not in self._constant
        )
        self._constant |= {*scores}

    def on_encoding(self, run: Progress, left: int) -> None:
        text = f"  encoding prompts: {left} left"
        self._bar.update(self._task, description=text)
        if not self._told_encoding and not self._out.is_terminal:
            self._out.print(text)
        self._told_encoding = True

    def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
        """Print the scores with their change since the run's first evaluation, and the alarm."""
        metrics, iteration = evaluated.metrics, run.iteration
        whole = [name for name in eval_names(metrics) if not name.tag]
        for name in self._config.eval_prompts:
            scores = [score for score in whole if score.eval_set == name]
            texts = [f"{score.score} {metrics[score.key]:.3f}{_change(metrics, score.key)}" for score in scores]
            self._out.print(f"evaluation after iteration {iteration}, {name}: {', '.join(texts)}", style="cyan")
        self._watched = next((f"{k[5:]} {metrics[k]:.3f}  " for k in self._headlines() if k in metrics), "")

        if evaluated.alarm:
            self._out.print(f"alarm after iteration {iteration}: {evaluated.alarm}", style="bold red")
            if self._config.stop_on_alarm and not evaluated.last:
                self._out.print("  stop_on_alarm is on: the run is saved and stops here", style="bold red")

    def on_iteration(self, run: Progress, metrics: dict[str, float]) -> None:
        iteration, images = run.iteration, self._config.num_groups * self._config.group_size
        seconds = metrics["time/iteration"]
        left = (self._config.iterations - iteration) * seconds
        if self._config.max_minutes is not None:
            left = min(left, max(0.0, 60 * self._config.max_minutes - metrics["time/elapsed"]))
        line = (
            f"reward {metrics['train/reward_mean']:.3f}  {self._watched}"
            f"clip {metrics.get('train/clip_fraction', 0):.3f}  grad {metrics.get('train/grad_norm', 0):.3f}  "
            f"{images / seconds:.1f} images/s  {_span(left)} left"
        )
        if not self._timed:
            self._timed = True
            self._out.print(
                f"  an iteration takes about {_span(seconds)}, those left {_span(left)} without evaluations"
            )
        self._bar.update(self._task, completed=iteration, description=line)
        if not self._out.is_terminal:
            self._out.print(f"iteration {iteration}/{self._config.iterations}  {line}")

    def _headlines(self) -> Iterator[str]:
        """The score to show while training goes on: a strict one, else the first watched, else the reward."""
        strict = [name for name in self._config.rewards if name.endswith("strict")]
        for score in (*strict, *self._config.eval_rewards, "reward"):
            for name in self._config.eval_prompts:
                yield f"eval/{name}/{score}"


def _kinds(config: Config) -> str:
    if config.offline is not None:
        return f"learning offline from the dataset {config.offline}; nothing is sampled but for evaluations"
    source = config.prompts if isinstance(config.prompts, str) else f"{len(config.prompts)} prompts"
    return f"prompts {source}, reward {' + '.join(f'{weight:g} {name}' for name, weight in config.rewards.items())}"


def _change(metrics: Mapping[str, float], key: str) -> str:
    return f" ({metrics[f'{key}/change']:+.3f})" if f"{key}/change" in metrics else ""


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
