"""Moving an old run aside, so that a new one can have its folder: nothing of it is deleted or changed.

Only a folder that is a run is moved, and only while this process holds its lock: a run in progress stays where it is.
"""

from __future__ import annotations

import contextlib
import os
from itertools import count
from pathlib import Path

from dgpo.config import Config
from dgpo.data.prompts import HUB, sources_of
from dgpo.errors import UserError
from dgpo.run import lock


def move_aside(run: Path, config: Config) -> Path:
    """Rename a run to the first of RUN-1, RUN-2... that does not exist, and return that. config: of the new run."""
    given, run = run, Path(os.path.abspath(run))
    _require_unneeded(run, config)
    with lock.held(run):
        aside = _claimed(run)
        try:
            run.rename(aside)  # in the place of the empty folder
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.rmdir()
            raise UserError(
                f"cannot move the old run {run} to {aside}: {error}. Move it yourself, or choose another --out"
            ) from error
    return given.with_name(aside.name) if given.name == run.name else aside


def _claimed(run: Path) -> Path:
    """An empty folder of a name that nothing had, so that no other process takes the name meanwhile."""
    for number in count(1):
        aside = run.with_name(f"{run.name}-{number}")
        try:
            aside.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot move the old run {run} aside: {error}. Choose another --out") from error
        return aside
    raise AssertionError("numbers do not end")


def _require_unneeded(run: Path, config: Config) -> None:
    """Refuse to move what the new run reads, a LoRA to continue for example, or the folder that we are in."""
    prompts = (*sources_of(config.prompts), *config.eval_prompts.values())
    sources = (config.model, config.offline, config.lora.start, *prompts)
    for source in (os.getcwd(), *filter(None, sources)):
        path = Path(source.split(":")[1] if source.startswith(HUB) else source).expanduser()
        if path.exists() and path.resolve().is_relative_to(run.resolve()):
            raise UserError(
                f"--overwrite would move {run}, and the new run needs {path}, which lies in it: choose another --out"
            )
