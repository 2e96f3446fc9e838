"""The folder of a run: config.yaml, environment.json, metrics.jsonl, first_evaluation.safetensors (scores of each
prompt, which later ones are compared with), samples/, checkpoints/, final/, report.html.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from dgpo import __version__, checkpoint
from dgpo.config import MAY_CHANGE, Config, changed_fields, load_yaml, save_yaml, to_dict
from dgpo.errors import UserError
from dgpo.trackers import read_metrics

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


def create(config: Config) -> tuple[Path, Config]:
    """Make a new run folder and write what the run is. An existing run is never touched."""
    run = Path(config.out) if config.out else _free(Path("runs") / config.name)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} already holds something. Choose another --out, or continue it with --resume {run}")
    config = replace(config, out=str(run))
    try:
        run.mkdir(parents=True, exist_ok=True)
        save_yaml(config, run / "config.yaml")
        (run / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the run folder {run}: {error}. Choose another --out") from error
    return run, config


def reopen(run: str | Path, config: Config | None = None) -> tuple[Path, Config]:
    """An existing run and its config, with changes to the fields in MAY_CHANGE taken over from `config`."""
    run = Path(run)
    stored = stored_config(run)
    config = replace(config or stored, out=str(run))
    illegal = [name for name in changed_fields(stored, config) if name not in MAY_CHANGE]
    if illegal:
        raise UserError(
            f"{run} was started with other values of {', '.join(illegal)}; a resumed run may change only "
            f"{', '.join(name for name in MAY_CHANGE if name != 'out')}. Start a new run for the rest"
        )
    newest = checkpoint.latest(run)
    if newest is None:
        raise UserError(f"{run} holds no checkpoint to resume from; start it again with another --out")
    if config.iterations < checkpoint.iteration_of(newest):
        raise UserError(
            f"iterations={config.iterations} is less than {run} has finished ({newest.name}); give the number at "
            "which the run shall end"
        )
    save_yaml(config, run / "config.yaml")
    return run, config


def stored_config(run: str | Path) -> Config:
    """The config of an existing run, which this version can continue."""
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder: it has no config.yaml. Give the folder that dgpo train --out wrote")
    _require_same_version(run)
    return load_yaml(run / "config.yaml")


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


def _free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3... that does not exist."""
    later = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(place for place in chain([path], later) if not place.exists())


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
