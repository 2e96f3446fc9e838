"""The watch over what is not trained: how every score changed since the run's first evaluation, and an alarm.

Evaluations share prompts and noise, so a change is a paired difference: each prompt's mean now minus the same at first.
Its interval is a percentile bootstrap over prompts (Efron 1979, 95 %, seeded); a prompt that a set names several times
is one, with all its rows. It holds for one score at one
evaluation: of many unchanged ones, about one in thirty lies below zero by chance.

The alarm: some trained score's interval lies above zero while that of some watched score (`eval_rewards`) lies below,
on whichever evaluation sets. Scores are rewards, so higher is better. `drift` is none: any training moves a model away
from its base, so its change is told and never an alarm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgpo.core.clusters import sums_and_counts
from dgpo.errors import UserError
from dgpo.utils.files import save_tensors, whole

PromptScores = Mapping[str, Tensor]  # SET/SCORE -> (prompts,) fp32, means over a prompt's images; NaN where it has none

ALARMS = "eval/alarms"
FIRST_EVALUATION, LAST_EVALUATION = "first_evaluation.safetensors", "last_evaluation.safetensors"
"""Files of a run folder: what later evaluations are compared with, and what other runs are."""
MIN_PROMPTS = 8
"""Fewer have no interval: with n prompts all n differences share a sign by chance once in 2^(n - 1)."""
RESAMPLES = 2000


class Moved(NamedTuple):
    """A score whose interval does not hold zero."""

    score: str
    eval_set: str
    change: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.score} on {self.eval_set} {self.change:+.3g} ({self.low:+.3g} to {self.high:+.3g})"


class Alarm(NamedTuple):
    """Held-out scores that fell, at least one, and the first trained score that rose meanwhile."""

    fell: list[Moved]
    rose: Moved

    def __str__(self) -> str:
        return f"held out, {', '.join(map(str, self.fell))} while {self.rose}"


def compare(
    path: Path, iteration: int, scores: PromptScores, distinct: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """eval/SET/SCORE/change, /change_low and /change_high against the first evaluation, which the file `path` keeps.

    distinct: SET -> (prompts,) int64, the same number for the same prompt; where it is missing all prompts differ. The
    run's first evaluation is written there and has no change; so is one that a resumed run makes again.
    """
    first = read_kept(path)
    if first is None or first.iteration >= iteration:
        write_kept(path, iteration, scores)
        return {}
    return changes(first.scores, scores, distinct)


def changes(before: PromptScores, now: PromptScores, distinct: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """The same of two evaluations, for the scores and the prompts that both have."""
    found: dict[str, float] = {}
    for name in (name for name in now if name in before):
        if len(before[name]) != len(now[name]):
            raise UserError(
                f"{name} has {len(now[name])} prompts, and had {len(before[name])} at the run's first evaluation: they "
                "cannot be compared. Give the evaluation set the prompts that it had"
            )
        difference = now[name].cpu().double() - before[name].cpu().double()
        here = difference.isfinite()
        difference, prompt = difference[here], (distinct or {}).get(name.split("/")[0], torch.arange(len(here)))[here]
        if len(difference):
            found[f"eval/{name}/change"] = difference.mean().item()
        if len(prompt.unique()) >= MIN_PROMPTS:
            found[f"eval/{name}/change_low"], found[f"eval/{name}/change_high"] = interval(difference, prompt)
    return found


def interval(difference: Tensor, prompt: Tensor | None = None, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean, over different prompts: each is drawn with all its rows.

    difference: (rows,) float; prompt: (rows,) int64, the number of each row's prompt; None: all differ.
    """
    from scipy.stats import bootstrap  # its import takes a second

    if prompt is None or len(prompt.unique()) == len(prompt):
        data, statistic = (difference,), np.mean
    else:
        data, statistic = sums_and_counts(difference, prompt), _ratio
    result = bootstrap(
        tuple(part.numpy() for part in data),
        statistic,
        n_resamples=RESAMPLES,
        paired=len(data) > 1,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _ratio(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean over rows from the sums and numbers of rows of each prompt."""
    return sums.sum(axis) / counts.sum(axis)


def alarm(metrics: Mapping[str, float], rewards: Mapping[str, float], watched: Iterable[str]) -> Alarm | None:
    """Whether one evaluation alarms.

    rewards: name -> weight of what is trained; of one with a negative weight no rise is expected, but of their sum
    """
    trained = [*(name for name, weight in rewards.items() if weight > 0), "reward"]
    held_out = {*watched} - {*rewards}
    moved = list(_moved(metrics))
    fell = [one for one in moved if one.score in held_out and one.high < 0]
    rose = [one for name in trained for one in moved if one.score == name and one.low > 0]
    return Alarm(fell, rose[0]) if fell and rose else None


def _moved(metrics: Mapping[str, float]) -> Iterator[Moved]:
    for key, low in metrics.items():
        if key.endswith("/change_low"):
            name = key.removesuffix("_low")
            eval_set, score = name.removeprefix("eval/").removesuffix("/change").split("/", 1)
            if low > 0 or metrics[f"{name}_high"] < 0:
                yield Moved(score, eval_set, metrics[name], low, metrics[f"{name}_high"])


class Kept(NamedTuple):
    """The scores of one evaluation as a file keeps them."""

    iteration: int
    scores: dict[str, Tensor]  # SET/SCORE -> (prompts,)
    distinct: dict[str, Tensor]  # SET -> (prompts,) int64; empty in a run's first evaluation, which does without


def read_kept(path: Path) -> Kept | None:
    """What `write_kept` wrote; None where there is no file."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            iteration = int(file.metadata()["iteration"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"cannot read {path}, the scores of one of the run's evaluations: {error}. Move it away, and the next "
            "evaluation writes it anew"
        ) from error
    scores = {name: tensor for name, tensor in tensors.items() if "/" in name}
    return Kept(iteration, scores, {name: tensor for name, tensor in tensors.items() if "/" not in name})


def write_kept(path: Path, iteration: int, scores: PromptScores, distinct: Mapping[str, Tensor] | None = None) -> None:
    """Keep an evaluation's scores of each prompt. distinct: stands under the name of its set, which has no slash."""
    with whole(path) as unfinished:
        tensors = {name: v.contiguous() for name, v in {**scores, **(distinct or {})}.items()}
        save_tensors(tensors, unfinished, {"iteration": str(iteration)})
