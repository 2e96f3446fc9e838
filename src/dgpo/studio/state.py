"""Whether a run goes on, is done, failed or was stopped: what its lock, its metrics and its failure say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from dgpo.config import Config, load_yaml
from dgpo.errors import UserError
from dgpo.run import failure, lock
from dgpo.run.pace import TimeLeft
from dgpo.studio.tail import Tail
from dgpo.training.schedule import evaluations_ahead

RUNNING, FINISHED, FAILED, STOPPED, UNREADABLE = "running", "finished", "failed", "stopped", "unreadable"


class State(NamedTuple):
    """One of the words above, and a sentence that says why."""

    name: str
    why: str


def state_of(run: Path, config: Mapping[str, Any], tail: Tail) -> State:
    """What can be said of a run from its folder alone."""
    holder = lock.holder(run)
    if holder is not None:
        return State(RUNNING, f"process {holder.pid} on {holder.host}, since {holder.since}")
    total, done = config.get("iterations"), tail.iteration
    if _is_done(config, tail):
        return State(FINISHED, f"after {done} iterations")
    failed = failure.read(run)
    if failed is not None:
        return State(FAILED, failed)
    at = f"after iteration {done} of {total}" if done else "before its first iteration was done"
    killed = lock.last_holder(run)
    if killed is not None:
        return State(STOPPED, f"{at}: process {killed.pid} on {killed.host} ended without a word")
    return State(STOPPED, at)


def time_left(run: Path, tail: Tail) -> str:
    """What the console would say, such as "4 min left"; empty where no iteration was timed yet."""
    path = run / "config.yaml"
    config = _typed(path, path.stat().st_mtime_ns)
    if config is None:
        return ""
    left = TimeLeft(config, partial(evaluations_ahead, config))
    for row in tail.trained:
        if "time/iteration" in row and "time/elapsed" in row:
            left.iterated(row["iteration"], row)
    if tail.evaluated:
        left.evaluation = tail.evaluated.get("time/eval")
    return str(left) if left.known else ""


@lru_cache(maxsize=64)
def _typed(path: Path, modified: int) -> Config | None:
    """A config; None where this version cannot read it. Kept, because it is asked for every second."""
    try:
        return load_yaml(path)
    except UserError:
        return None


def _is_done(config: Mapping[str, Any], tail: Tail) -> bool:
    """Whether the run has had all its iterations, or all its time."""
    total, minutes, done = config.get("iterations"), config.get("max_minutes"), tail.iteration
    if done is None or not isinstance(total, int):
        return False
    return done >= total or (isinstance(minutes, (int, float)) and tail.elapsed >= 60 * minutes)
