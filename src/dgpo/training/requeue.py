"""`resume="auto"`: one command creates a run or continues it, so that a scheduler may start it again for ever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dgpo import distributed
from dgpo.config import Config
from dgpo.run import checkpoint
from dgpo.run import folder as runfolder
from dgpo.run.console import say
from dgpo.training import saving, schedule
from dgpo.training.running import Result
from dgpo.training.state import State, done
from dgpo.utils.devices import device_of, precision_of


def created_or_continued(config: Config) -> tuple[Config, bool, Result | None]:
    """The config with its folder, whether that holds a run, and the result of one that has nothing left to do.

    The first process looks; all get the same answer. A run of another config is refused, finished or not.
    """
    device = distributed.init(device_of(config.device), config.rank_timeout_minutes)

    def look() -> list[tuple[str | None, bool, int | None]]:
        if not distributed.is_main():
            return []
        own, exists = runfolder.found(config)
        own = replace(own, dtype=precision_of(own.dtype, device))
        return [(own.out, exists, _finished(own) if exists else None)]

    out, exists, iterations = distributed.gather_objects(distributed.together(look))[0]
    if iterations is None:
        return replace(config, out=out), exists, None
    say(f"{out} has finished, after {iterations} iterations: there is nothing to do")
    return replace(config, out=out), exists, Result(Path(out), iterations, {}, False)


def _finished(config: Config) -> int | None:
    """The iterations of a run that has had all of them, was evaluated and has left its weights; None: it goes on."""
    run = Path(config.out or "")
    newest = checkpoint.latest(run)
    if newest is None or config.push_to_hub:  # nothing here tells whether the upload was done
        return None
    state = saving.state_of(checkpoint.read_state(newest))
    if not done(state, config) or not _is_complete(run, state, config):
        return None
    runfolder.require_same_run(run, _known(config, state))
    return state.iteration


def _is_complete(run: Path, state: State, config: Config) -> bool:
    """Whether the last evaluation and the export were made."""
    evaluated = state.evaluated == state.iteration or not schedule.evaluates(config, state.iteration, last=True)
    return evaluated and (not config.checkpoint_every or (run / "final" / "README.md").is_file())


def _known(config: Config, state: State) -> Config:
    """With what only a model or dataset that is loaded would tell taken from the run, which has read them."""
    stored, config = runfolder.stored_config(config.out or ""), runfolder.with_stored(config)
    if config.offline is not None:
        config = replace(config, group_size=stored.group_size, noise_scale_every=stored.noise_scale_every)
    return replace(config, iterations=max(config.iterations, state.iteration))
