"""A run folder's numbers: metrics.jsonl as series, and what the resolved config says about them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dgpo.errors import UserError
from dgpo.run.best import Standing, standing
from dgpo.run.metric_names import FORWARDS, EvalName, eval_names, without_repeats
from dgpo.run.trackers import read_metrics

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C takes a tenth of the time, which a page of a thousand runs needs; not every build of PyYAML has it."""


class Point(NamedTuple):
    """One logged value."""

    iteration: int
    value: float


@dataclass(frozen=True)
class Log:
    """Every metric's values by iteration, ascending; NaN where the log says null, which stands for not finite."""

    columns: dict[str, list[Point]]

    def series(self, key: str) -> list[Point]:
        """Every finite value of one metric."""
        return [point for point in self.columns.get(key, []) if math.isfinite(point.value)]

    def names(self, prefix: str) -> list[str]:
        """What follows `prefix` in the metrics' names, in the order of first appearance."""
        return [key.removeprefix(prefix) for key in self.columns if key.startswith(prefix) and self.series(key)]

    def evals(self) -> list[EvalName]:
        """Every evaluation metric; errors, counts, changes and their intervals are not metrics of their own."""
        return eval_names(key for key in self.columns if self.series(key))

    def at(self, iteration: int) -> dict[str, float]:
        """The finite metrics of one iteration."""
        return {key: p.value for key in self.columns for p in self.series(key) if p.iteration == iteration}

    def until(self, iteration: int) -> Log:
        """What was logged up to an iteration."""
        return Log({key: [p for p in points if p.iteration <= iteration] for key, points in self.columns.items()})

    def standings(self) -> list[Standing]:
        """What each evaluation is judged by, in their order."""
        keys = [key for key in self.columns if key.startswith("eval/")]
        rows: dict[int, dict[str, float]] = {}
        for key in keys:
            for point in self.series(key):
                rows.setdefault(point.iteration, {})[key] = point.value
        return [found for i in sorted(rows) if (found := standing(i, rows[i]))]

    def trained(self) -> int:
        """How many iterations have trained. Evaluations log train/forwards too, also the one before the first."""
        keys = [key for key in self.columns if key.startswith("train/") and key != FORWARDS]
        return len({point.iteration for key in keys for point in self.columns[key]})

    def forwards(self) -> float | None:
        """Network forwards of training so far, each of one image, a backward as two; None where no row tells."""
        return max((point.value for point in self.series(FORWARDS)), default=None)

    def elapsed(self) -> float | None:
        """Seconds of wall time so far, None where no row tells."""
        return max((point.value for point in self.series("time/elapsed")), default=None)


def read_log(path: Path) -> Log:
    """Read metrics.jsonl; a missing file is a run that has not logged yet."""
    return from_rows(read_metrics(path) if path.exists() else [])


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Log:
    """Merge rows into columns; where an iteration logs a metric twice, the later value stands."""
    columns: dict[str, dict[int, float]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "iteration" and isinstance(value, (int, float, type(None))):
                columns.setdefault(key, {})[row["iteration"]] = math.nan if value is None else value
    return Log({key: [Point(*item) for item in sorted(values.items())] for key, values in columns.items()})


def find(config: Any, key: str) -> Any:
    """The outermost value called `key` in nested mappings, None where there is none."""
    if not isinstance(config, Mapping):
        return None
    if key in config:
        return config[key]
    return next((found for value in config.values() if (found := find(value, key)) is not None), None)


def reward_names(value: Any) -> set[str]:
    """The scores a config's `rewards` or `eval_rewards` name, whether a string, a list or a mapping to weights."""
    if isinstance(value, str):
        return {value, value.rpartition(":")[2]}
    if isinstance(value, Mapping):
        return {str(value["name"])} if "name" in value else set().union(*map(reward_names, value))
    return set().union(*map(reward_names, value)) if isinstance(value, (list, tuple)) else set()


def only_reward(config: Mapping[str, Any]) -> str | None:
    """The name of a run's reward where there is one only, of weight 1: `reward`, the sum, is then the same."""
    rewards = find(config, "rewards")
    names = [*rewards] if isinstance(rewards, Mapping) else []
    return names[0] if len(names) == 1 and rewards[names[0]] == 1 else None


def shown_evals(log: Log, config: Mapping[str, Any]) -> list[EvalName]:
    """Every evaluation metric but those that repeat another."""
    only = only_reward(config)
    return without_repeats(log.evals(), {} if only is None else {only: 1.0}, log.series)


def is_in_domain(score: str, config: Mapping[str, Any]) -> bool:
    """True for what the run was trained on: its rewards, their sum, and their strict forms."""
    return score == "reward" or score.endswith("_strict") or score in reward_names(find(config, "rewards"))


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file's mapping, empty where the file is missing."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _LOADER)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
