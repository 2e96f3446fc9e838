"""The folder of a run: config.yaml, environment.json, prompts.json (hashes of its prompts), metrics.jsonl,
first_evaluation.safetensors (scores of each prompt, which later ones are compared with), last_evaluation.safetensors
(which other runs are compared with), samples/, checkpoints/, failures/, final/, best/, report.html, console.log,
failure.txt (of what it failed, until it goes on), requests/ (what it is asked to do), lock.

config.yaml is written last: a folder that has it is a run. The same run may begin anew in it while it holds no work.
Any other run gets the folder of an old one only when that is moved aside (aside.py).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import Any, NoReturn

import torch

from dgpo import __version__
from dgpo.config import (
    AUTOMATIC,
    MAY_CHANGE,
    OWN_SETS,
    Config,
    changed_fields,
    in_place_of_automatic,
    load_yaml,
    save_yaml,
    to_dict,
)
from dgpo.errors import NotHere, UserError
from dgpo.run import checkpoint, console_log, failure, lock, requests
from dgpo.run.aside import move_aside
from dgpo.run.console import say
from dgpo.run.trackers import read_metrics
from dgpo.utils.devices import cpu_name
from dgpo.utils.files import is_unfinished
from dgpo.utils.hub_id import RUNS
from dgpo.utils.places import require_no_part

CONFIG = "config.yaml"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


@contextmanager
def created(config: Config, overwrite: bool = False) -> Iterator[tuple[Path, Config]]:
    """A new run folder, locked, that says what the run is. An existing run is never touched.

    overwrite: but moved aside, if it has the place
    """
    run = _place(config, overwrite)
    config = replace(config, out=str(run))
    with lock.held(run):
        _require_unused(run, config)  # another process may have been quicker
        try:
            (run / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
            save_yaml(config, run / CONFIG)
        except OSError as error:
            raise _unwritable(run, error) from error
        yield run, config


@contextmanager
def reopened(run: str | Path, config: Config | None = None) -> Iterator[tuple[Path, Config]]:
    """An existing run, locked, and its config with the fields in MAY_CHANGE taken over from `config`.

    Its config.yaml stays as it is until `write_config`: the run may still be refused.
    """
    run = Path(run)
    stored_config(run)  # refuses what is no run before a lock is put there
    with lock.held(run):
        config = replace(config or stored_config(run), out=str(run))
        require_same_run(run, config)
        yield run, config


def write_config(run: Path, config: Config) -> None:
    """Keep the config that a resumed run goes on with."""
    save_yaml(config, run / CONFIG)


def require_same_run(run: Path, config: Config) -> None:
    """Refuse a config that cannot continue the run: other values than those it has trained with, or too few iterations.

    What it has trained with is in its newest checkpoint; one made before checkpoints kept their config has none, and
    the run's config.yaml stands in.
    """
    newest = checkpoint.latest(run)
    kept = None if newest is None else newest / CONFIG
    before = load_yaml(kept) if kept is not None and kept.is_file() else stored_config(run)
    illegal = [name for name in changed_fields(before, config) if name not in MAY_CHANGE]
    if illegal:
        edited = set(illegal) & set(changed_fields(before, stored_config(run)))
        raise UserError(
            f"{run} was started with other values of {', '.join(illegal)}; a resumed run may change only "
            f"{', '.join(name for name in MAY_CHANGE if name != 'out')}. Start a new run for the rest"
            + (f", or put back into {run / CONFIG} what {kept} says of {', '.join(sorted(edited))}" if edited else "")
        )
    if newest is None:
        if _rows(run):
            raise UserError(
                f"{run} holds no checkpoint to resume from; start it again with another --out or --overwrite"
            )
        return  # killed before its first checkpoint: it begins at the beginning
    if config.iterations < checkpoint.iteration_of(newest):
        raise UserError(
            f"iterations={config.iterations} is less than {run} has finished ({newest.name}); give the number at "
            "which the run shall end"
        )


def with_stored(config: Config) -> Config:
    """Take what is not given from the run in `config.out`: name, ranks of the LoRA, evaluation sets, offload."""
    stored = stored_config(config.out or "")
    own = {name: source for name, source in stored.eval_prompts.items() if OWN_SETS.get(name) == source}
    given = config.eval_prompts
    sets = stored.eval_prompts if given == AUTOMATIC else in_place_of_automatic(own, given)
    name = config.name or stored.name
    offload = stored.offload if config.offload == "auto" else config.offload
    return replace(config, name=name, lora=config.lora.filled(stored.lora), eval_prompts=sets, offload=offload)


def stored_config(run: str | Path) -> Config:
    """The config of an existing run, which this version can continue."""
    run = Path(run)
    require_no_part(run)
    if not (run / CONFIG).is_file():
        raise UserError(
            f"{run} is no run folder: it has no {CONFIG}. Give the folder that dgpo train --out wrote; if that was "
            "ended at its start, start it again"
        )
    _require_same_version(run)
    return load_yaml(run / CONFIG)


@contextmanager
def reading_of(run: str | Path | None) -> Iterator[None]:
    """Around the reading of what a run names, by paths from the folder where it began, as an error then says.

    run: a run folder; of anything else nothing is said
    """
    try:
        yield
    except NotHere as error:
        if run is None or not (Path(run) / CONFIG).is_file():
            raise
        raise UserError(
            f"{str(error).removesuffix('.')}. If the run {run} names it, go on from the folder where that run began"
        ) from error


def record(run: Path) -> dict[str, Any]:
    """What a finished run has to tell in a benchmark's results: config, environment and metrics, without places."""
    told = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return {
        "config": to_dict(replace(stored_config(run), out=None)),
        "environment": {key: value for key, value in told.items() if key != "command"},
        "metrics": read_metrics(run / "metrics.jsonl"),
    }


def environment() -> dict[str, Any]:
    """What a run says of itself: `conditions`, and the command with its places."""
    return {**conditions(), "command": sys.argv}


def conditions() -> dict[str, Any]:
    """Versions, git state and machine: what a published result says of itself."""
    return {
        "dgpo": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "git": _git(),
        "machine": {
            "platform": platform.platform(),
            "cpu": cpu_name(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _require_same_version(run: Path) -> None:
    try:
        version = json.loads((run / "environment.json").read_text(encoding="utf-8"))["dgpo"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run}/environment.json does not say which dgpo wrote the run: {error!r}") from error
    if str(version).split(".")[:2] != __version__.split(".")[:2]:
        raise UserError(
            f"{run} was written by dgpo {version}, this is {__version__}: its iterations would not be the same. "
            f"Resume it with dgpo {version}, or start a new run"
        )


def _place(config: Config, overwrite: bool) -> Path:
    """The folder of a new run, made: `config.out`, or the first of runs/NAME, runs/NAME-2... that does not exist.

    overwrite: it is runs/NAME then, and an old run is moved aside
    """
    path = _wanted(config)
    given = overwrite or config.out is not None
    if overwrite:
        _make_room(path, replace(config, out=str(path)))
    elif given:
        _require_unused(path, replace(config, out=str(path)))
    later = (path.with_name(f"{path.name}-{number}") for number in count(2))
    for place in chain([path], () if given else later):
        try:
            place.mkdir(parents=True, exist_ok=given)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(place, error) from error
        return place
    raise AssertionError("numbers do not end")


def _wanted(config: Config) -> Path:
    """The folder that the config names, or runs/NAME."""
    return Path(config.out) if config.out else Path(RUNS) / config.called


def found(config: Config) -> tuple[Config, bool]:
    """The config with the folder that it names, by `out` or its name, and whether that holds a run already."""
    run = _wanted(config)
    return replace(config, out=str(run)), (run / CONFIG).is_file()


def require_free(config: Config, overwrite: bool) -> None:
    """Refuse a folder that a new run cannot have, as far as that can be told before its model is loaded."""
    run = _wanted(config)
    if overwrite and _taken(run):
        _require_run(run)
    elif config.out is not None and _taken(run):
        _refuse_taken(run)


def _require_unused(run: Path, config: Config) -> None:
    if not _unused(run, config):
        _refuse_taken(run)


def _refuse_taken(run: Path) -> NoReturn:
    if not _is_run(run):
        raise UserError(f"{run} already holds something, and it is no run. Choose another --out")
    raise UserError(
        f"{run} already holds something. Choose another --out, continue it with --resume {run}, or start anew there "
        f"with --overwrite (overwrite=True in Python), which first moves the old run to {run.name}-1 or the next free "
        "number"
    )


def _make_room(run: Path, config: Config) -> None:
    """Move an old run aside, and say so; refuse what is no run."""
    if _unused(run, config):
        return
    _require_run(run)
    say(f"moved the old run {run} to {move_aside(run, config)}")


def _require_run(run: Path) -> None:
    if not _is_run(run):
        raise UserError(
            f"{run} is no run: its {CONFIG} and environment.json are not both there, or not dgpo's. --overwrite moves "
            "aside nothing else; choose another --out"
        )


def _is_run(run: Path) -> bool:
    """Whether dgpo, of any version, has made the folder for a run."""
    try:
        told = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (run / CONFIG).is_file() and isinstance(told, dict) and "dgpo" in told


def _unused(run: Path, config: Config) -> bool:
    """Whether nothing is there, or a folder with at most what this very run, ended at its start, has left there."""
    stored = run / CONFIG
    return not _taken(run) and not (stored.exists() and changed_fields(load_yaml(stored), config))


def _taken(run: Path) -> bool:
    """Whether there is more than a run that ended at its start has left there."""
    if not run.is_dir():
        return run.exists()
    files = {path.name for path in run.iterdir()}
    ours = {lock.NAME, "environment.json"}
    if "environment.json" in files:  # a config.yaml without it may be anybody's
        ours |= {
            CONFIG,
            "checkpoints",
            "metrics.jsonl",
            console_log.NAME,
            failure.NAME,
            requests.FOLDER,
            *(name for name in files if is_unfinished(name, CONFIG)),
        }
    return not files <= ours or checkpoint.holds_any(run) or _rows(run)


def _rows(run: Path) -> bool:
    """Whether anything was logged."""
    path = run / "metrics.jsonl"
    return path.is_file() and bool(read_metrics(path))


def _unwritable(run: Path, error: OSError) -> UserError:
    return UserError(f"cannot write the run folder {run}: {error}. Choose another --out")


def _git() -> dict[str, Any] | None:
    """Commit and whether files differ from it, where this code is a checkout."""
    commit = _run(["git", "rev-parse", "HEAD"])
    return {"commit": commit, "changed": bool(_run(["git", "status", "--porcelain", "-uno"]))} if commit else None


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
