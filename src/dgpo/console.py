"""What a person sees of a run: the plan before it, one line an iteration, evaluations, how to go on afterwards."""

from __future__ import annotations

import time

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgpo import distributed
from dgpo.algorithms import Algorithm
from dgpo.config import Config
from dgpo.models import VelocityModel

SHOWN = ("shapes_strict", "reward")  # scores on the progress line, the first that a run has


class Console:
    """A live line in a terminal, plain lines elsewhere, silence on ranks other than the first."""

    def __init__(self, config: Config, model: VelocityModel, algorithm: Algorithm, num_prompts: int) -> None:
        self._config, self._model, self._algorithm, self._num_prompts = config, model, algorithm, num_prompts
        self._out = RichConsole(quiet=not distributed.is_main(), highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("iteration"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=self._out, disable=not self._out.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=config.iterations)
        self._started = time.perf_counter()
        self._first: dict[str, float] = {}

    def __enter__(self) -> Console:
        for line in self.plan():
            self._out.print(line)
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def plan(self) -> list[str]:
        """What will be done, before anything is."""
        c, images = self._config, self._config.num_groups * self._config.group_size
        trainable = sum(p.numel() for p in self._model.weights.parameters())
        return [
            f"[bold]{c.name}[/]: {type(self._algorithm).__name__} on {c.model}, {_kinds(c)}",
            f"  trains {trainable:,} parameters ({c.finetune}), {c.dtype} on {self._model.device}, "
            f"{distributed.world_size()} process(es)",
            f"  an iteration: {c.num_groups} of {self._num_prompts} prompts x {c.group_size} images = {images} images, "
            f"{c.updates_per_rollout} optimizer step(s), {network_evaluations(c):,} network evaluations",
            f"  {c.iterations} iterations; run folder {c.out}",
        ]

    def evaluated(self, iteration: int, metrics: dict[str, float]) -> None:
        """The scores of one evaluation, with their change since the first that this process saw."""
        self._first = self._first or metrics
        for name in sorted({key.split("/")[1] for key in metrics}):
            scores = {
                k.split("/")[2]: v for k, v in metrics.items() if k.startswith(f"eval/{name}/") and k.count("/") == 2
            }
            texts = [
                f"{score} {value:.3f}{self._change(f'eval/{name}/{score}', value)}" for score, value in scores.items()
            ]
            self._out.print(f"[cyan]evaluation after iteration {iteration}[/], {name}: {', '.join(texts)}")

    def iterated(self, iteration: int, metrics: dict[str, float]) -> None:
        """One iteration is done."""
        images = self._config.num_groups * self._config.group_size
        seconds = metrics["time/iteration"]
        left = (self._config.iterations - iteration) * seconds
        strict = next((f"{n} {v:.3f}  " for s in SHOWN if (v := metrics.get(n := f"train/score/{s}")) is not None), "")
        line = (
            f"reward {metrics['train/reward_mean']:.3f}  {strict}clip {metrics.get('train/clip_fraction', 0):.3f}  "
            f"grad {metrics['train/grad_norm']:.3f}  {images / seconds:.1f} images/s"
        )
        self._bar.update(self._task, completed=iteration, description=line)
        if not self._out.is_terminal:
            self._out.print(
                f"iteration {iteration}/{self._config.iterations}  {line}  {seconds:.1f} s, about {_span(left)} left"
            )

    def say(self, text: str) -> None:
        self._out.print(text)

    def _change(self, key: str, value: float) -> str:
        before = self._first.get(key)
        return "" if before is None or self._first.get(key) is value else f" ({value - before:+.3f})"


def network_evaluations(config: Config) -> int:
    """Forward passes of one image through the network in one iteration; backward passes not counted."""
    images = config.num_groups * config.group_size
    s, a = config.sampling, config.algorithm
    per_step = (2 if s.solver == "heun" else 1) * (2 if s.guidance_scale != 1 else 1)
    reference = (2 if a.ref_guidance_scale != 1 else 1) if "ref" in a.needs else 0
    per_point = 1 + reference + ("old" in a.needs)
    return images * (s.num_inference_steps * per_step + config.updates_per_rollout * a.num_points * per_point)


def _kinds(config: Config) -> str:
    source = config.prompts if isinstance(config.prompts, str) else f"{len(config.prompts)} prompts"
    return f"prompts {source}, reward {' + '.join(f'{weight:g} {name}' for name, weight in config.rewards.items())}"


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
