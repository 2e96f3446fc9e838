"""What several run folders hold and share: evaluation sets, scores, noise. `comparison.py` shows it.

Runs share an evaluation set that has the same name and source in all of them. They share its noise where the fields in
`NOISE` are equal: only then the difference of two runs is one of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dgpo.config import HELD_OUT, TRAINED
from dgpo.errors import UserError
from dgpo.report.curves import SERIES
from dgpo.report.grids import Samples, read_samples
from dgpo.report.log import Log, Point, is_in_domain, read_log, read_mapping, shown_evals
from dgpo.run import prompt_lists
from dgpo.run.changes import LAST_EVALUATION, changes, read_kept
from dgpo.run.metric_names import EvalName
from dgpo.utils.places import require_no_part

NOISE = ("seed", "eval_images_per_prompt", "eval_images", "resolution")
"""Fields that say which noise an evaluation draws from."""


class Run(NamedTuple):
    """One of the runs that are compared."""

    folder: Path
    label: str
    colour: str  # of its lines
    dashed: bool
    config: dict[str, Any]
    log: Log
    samples: Samples | None

    @property
    def sets(self) -> dict[str, Any]:
        """Evaluation set -> where its prompts come from; for the run's own prompts also what these depend on."""
        sources = self.config.get("eval_prompts") or {}
        own = [self.config.get(field) for field in ("prompts", "offline", "seed")]
        found = {name.eval_set: sources.get(name.eval_set) for name in self.log.evals()}
        return {name: (source, own if source in (HELD_OUT, TRAINED) else None) for name, source in found.items()}

    def has_set_of(self, other: Run, name: str) -> bool:
        """Whether both have an evaluation set from one source and, as far as both runs say it, of the same prompts."""
        own, theirs = (prompt_lists.read(run.folder).get(prompt_lists.of_set(name)) for run in (self, other))
        return self.sets.get(name) == other.sets[name] and (own is None or theirs is None or own == theirs)

    def last(self, key: str) -> Point | None:
        """A metric's last value."""
        return next(reversed(self.log.series(key)), None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """At least two different run folders, each with an evaluation."""
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        named = ", ".join(map(str, folders)) or "none"
        raise UserError(f"comparing takes two different run folders or more; got {named}")
    labels = [folder.resolve().name for folder in folders]
    if len({*labels}) < len(labels):
        labels = [str(folder) for folder in folders]
    return [_read(folder, label, place) for place, (folder, label) in enumerate(zip(folders, labels))]


def _read(folder: Path, label: str, place: int) -> Run:
    require_no_part(folder)
    config, log, colours = read_mapping(folder / "config.yaml"), read_log(folder / "metrics.jsonl"), SERIES[1:]
    if not config:
        raise UserError(f"{folder} is no run folder: it has no config.yaml. Give a folder that dgpo train --out wrote")
    if not log.evals():
        raise UserError(
            f"{folder} holds no evaluation yet, so there is nothing to compare. Wait for the first one, or train with "
            "--eval-every above 0"
        )
    dashed = place >= len(colours)
    return Run(folder, label, colours[place % len(colours)], dashed, config, log, read_samples(folder))


def common_sets(runs: Sequence[Run]) -> list[str]:
    """The evaluation sets that all runs have; at least one."""
    first, *others = runs
    common = [name for name in first.sets if all(run.has_set_of(first, name) for run in others)]
    if not common:
        each = "; ".join(f"{run.label} has {', '.join(f'{k}={v[0]}' for k, v in run.sets.items())}" for run in runs)
        raise UserError(
            f"the runs have no evaluation set in common: {each}. Sets are the same if name, source and prompts are, "
            "and those of a run's own prompts if its prompts and seed are too. Score each run on one list instead: "
            "dgpo eval RUN --eval-prompts test=FILE"
        )
    return common


def common_scores(runs: Sequence[Run], sets: Sequence[str]) -> list[EvalName]:
    """The scores of these sets that all runs have, what the first run trains on before the rest.

    The sum of the rewards, `reward`, is among them only where all runs sum the same.
    """
    first, *others = runs
    shown = {name for run in runs for name in shown_evals(run.log, run.config)}
    found = [name for name in first.log.evals() if name.eval_set in sets and not name.tag and name in shown]
    found = [name for name in found if all(run.last(name.key) for run in others)]
    found = [name for name in found if name.score != "reward" or same_rewards(runs)]
    order = list(dict.fromkeys(name.score for name in found))
    return sorted(found, key=lambda name: (not is_in_domain(name.score, first.config), order.index(name.score)))


def same_rewards(runs: Sequence[Run]) -> bool:
    """Whether all runs are trained on the same sum."""
    return all(run.config.get("rewards") == runs[0].config.get("rewards") for run in runs)


def different_noise(first: Run, other: Run) -> list[str]:
    """The fields because of which two runs evaluate from different noise; none: they are paired."""

    def value(run: Run, field: str) -> Any:
        return run.config.get(field) or None  # runs of older versions have no eval_images, which is as none

    return [field for field in NOISE if value(first, field) != value(other, field)]


def differences(first: Run, other: Run) -> dict[str, float]:
    """Paired changes from the first run's last evaluation to the other's, under the keys of `run.changes.changes`.

    Nothing where the runs are not paired, or where one was made before runs kept the scores of their last evaluation.
    """
    before, after = (read_kept(run.folder / LAST_EVALUATION) for run in (first, other))
    if before is None or after is None or different_noise(first, other):
        return {}
    alike = {name: each for name, each in after.scores.items() if len(before.scores.get(name, ())) == len(each)}
    kept = {name: each for name, each in alike.items() if _is_logged(first, before.iteration, name)}
    kept = {name: each for name, each in kept.items() if _is_logged(other, after.iteration, name)}
    return changes(before.scores, kept, before.distinct)


def _is_logged(run: Run, iteration: int, score: str) -> bool:
    """Whether the log ends with that evaluation: a resumed run may have taken it back."""
    point = run.last(f"eval/{score}")
    return point is not None and point.iteration == iteration
