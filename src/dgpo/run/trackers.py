"""Where a run's numbers and pictures go: always `metrics.jsonl`, and whichever dashboards were asked for.

The JSONL file is what reports read; the others only show the same rows. Each call of `log` is one row, so one iteration
may have several (training, evaluation). A resumed run first takes back the rows later than its checkpoint: they move
to `metrics.discarded.jsonl`, because their iterations are about to be run, and logged, again.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from dgpo.errors import UserError, did_you_mean
from dgpo.run.callbacks import Callback, Evaluated, Progress
from dgpo.utils.files import whole
from dgpo.utils.imports import import_named, is_path, meant


class Tracker(Protocol):
    """Something that takes rows of metrics and pictures. `iteration` never decreases.

    Its class is called with the run's folder, the config as plain values, and the iteration that a resumed run goes on
    from: later rows may have been logged before, and come again. None: a new run.
    """

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None: ...

    def images(self, iteration: int, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


Kind = Callable[[Path, Mapping[str, Any], int | None], Tracker]


def make_trackers(
    names: Iterable[str],
    run_dir: str | Path,
    config: Mapping[str, Any],
    resumed_at: int | None = None,
    evaluated: float = math.inf,
) -> TrackerGroup:
    """The JSONL tracker and those in `names`; `resumed_at` is the iteration whose checkpoint the run continues.

    evaluated: the last iteration whose evaluation that checkpoint knows; a later one is made, and logged, again
    """
    wanted = require_trackers(names)
    jsonl = JsonlTracker(run_dir)
    if resumed_at is not None:
        jsonl.rewind(resumed_at, evaluated)
    last = -1 if resumed_at == 0 and evaluated < 0 else resumed_at  # of the iterations that dashboards keep
    return TrackerGroup([jsonl, *(kind(Path(run_dir), config, last) for kind in wanted)])


def require_trackers(names: Iterable[str]) -> list[Kind]:
    """The trackers beside the JSONL one; a name that is unknown, or whose package is missing, is refused."""
    return [_kind(name) for name in dict.fromkeys(names) if name != "jsonl"]


def _kind(name: str) -> Kind:
    extras: dict[str, Kind] = {
        "tensorboard": TensorBoardTracker,
        "wandb": WandbTracker,
        "trackio": TrackioTracker,
    }
    if is_path(name):
        kind = import_named(name, f"tracker {name!r}")
        lacking = [part for part in ("log", "images", "close") if not callable(getattr(kind, part, None))]
        if not isinstance(kind, type) or lacking:
            raise UserError(
                f"tracker {name!r} is no class with log(iteration, metrics), images(iteration, name, path) and close()"
                + (f": it lacks {', '.join(lacking)}" if isinstance(kind, type) else "")
            )
        return kind
    if name not in extras:
        raise UserError(
            f"unknown tracker {name!r}. {did_you_mean(name, [*extras, 'jsonl'])} Your own is given as "
            f"{meant(name) or 'package.module:Class'}"
        )
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"the tracker {name!r} needs the package {name}, which is not installed: pip install 'dgpo[{name}]'"
        )
    return extras[name]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics file as they were logged, unmerged. A last line cut short by a kill is left out."""
    try:
        lines = _lines(Path(path))
    except OSError as error:
        raise UserError(f"cannot read the metrics {str(path)!r}: {error}") from error
    rows = [_row(line) for line in lines]
    for number, row in enumerate(rows[:-1], start=1):
        if row is None:
            raise UserError(f"line {number} of {str(path)!r} is not a row of metrics: {lines[number - 1][:80]!r}")
    return [row for row in rows if row is not None]


class NullTracker:
    """Takes everything and does nothing: for tests, and for all ranks but the first."""

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        pass

    def images(self, iteration: int, name: str, path: Path) -> None:
        pass

    def close(self) -> None:
        pass


class TrackerGroup:
    """Several trackers as one. Closing closes them all, whatever one of them raises."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(iteration, metrics)

    def images(self, iteration: int, name: str, path: Path) -> None:
        for tracker in self.trackers:
            tracker.images(iteration, name, path)

    def close(self) -> None:
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.close)


class JsonlTracker:
    """One JSON object a line in RUN/metrics.jsonl, `iteration` first, flushed; NaN and infinities become null.

    Pictures are not repeated here: they are files of the run folder already.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self.rewind(math.inf)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        row = {"iteration": iteration, **{name: _plain(value) for name, value in metrics.items()}}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def images(self, iteration: int, name: str, path: Path) -> None:
        pass

    def close(self) -> None:
        self._file.close()

    def rewind(self, iteration: float, evaluated: float = math.inf) -> None:
        """Move rows later than `iteration`, and a half-written last line, to metrics.discarded.jsonl.

        So are rows of evaluations later than `evaluated`.
        """
        self._file.close()
        kept, dropped = [], []
        for line in _lines(self.path):
            row = _row(line)
            last = evaluated if row is not None and any(name.startswith("eval/") for name in row) else math.inf
            stays = row is not None and row["iteration"] <= min(iteration, last)
            (kept if stays else dropped).append(line + "\n")
        if dropped:
            with open(self.path.with_name("metrics.discarded.jsonl"), "a", encoding="utf-8") as file:
                file.writelines(dropped)
        with whole(self.path) as unfinished:
            unfinished.write_text("".join(kept), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115


class TensorBoardTracker:
    """Event files in RUN/tensorboard; a resumed run hides the rows it takes back."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], resumed_at: int | None = None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=2, default=str)}\n```", resumed_at or 0)

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def images(self, iteration: int, name: str, path: Path) -> None:
        import numpy
        from PIL import Image

        pixels = numpy.asarray(Image.open(path).convert("RGB"))  # (H, W, 3)
        self._writer.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Weights & Biases, with its own environment variables (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, ...).

    `iteration` is a metric that serves as every curve's x axis: W&B drops rows whose own step goes back, as a resumed
    run's does.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any], resumed_at: int | None = None) -> None:
        self._wandb = importlib.import_module("wandb")
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "dgpo"),
                name=run_dir.absolute().name,
                id=_run_id(run_dir),
                dir=str(run_dir),
                config=dict(config),
                resume="allow",
                allow_val_change=True,
            )
        except self._wandb.errors.Error as error:
            raise UserError(f"W&B did not start ({error}); set WANDB_MODE=offline to log without its server") from error
        self._run.define_metric("*", step_metric="iteration")

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **metrics})

    def images(self, iteration: int, name: str, path: Path) -> None:
        self._run.log({"iteration": iteration, name: self._wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()


class TrackioTracker:
    """trackio, a local dashboard (`trackio show`); its own environment variables apply (TRACKIO_DIR, ...)."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], resumed_at: int | None = None) -> None:
        self._trackio = importlib.import_module("trackio")
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "dgpo"),
            name=f"{run_dir.absolute().name}-{_run_id(run_dir)}",
            config=dict(config),
            resume="allow",
        )

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._run.log({name: _plain(value) for name, value in metrics.items()}, step=iteration)

    def images(self, iteration: int, name: str, path: Path) -> None:
        self._run.log({name: self._trackio.Image(path)}, step=iteration)

    def close(self) -> None:
        self._run.finish()


def _run_id(run_dir: Path) -> str:
    """An id for the dashboards, drawn once and kept in the run folder, so that a resumed run is the same run."""
    file = run_dir / "tracker-id.txt"
    if not file.exists():
        file.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def _plain(value: Any) -> float | int | None:
    """A JSON number from a float, an int or a 0-dim tensor; None where it is not finite."""
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]


def _row(line: str) -> dict[str, Any] | None:
    """The row a line holds, None where it was cut short."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "iteration" in row else None


class Tracking(Callback):
    """Tells trackers of a run's numbers and pictures."""

    def __init__(self, trackers: TrackerGroup) -> None:
        self._trackers = trackers

    def on_iteration(self, run: Progress, metrics: dict[str, float]) -> None:
        self._trackers.log(run.iteration, metrics)

    def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
        self._trackers.log(run.iteration, evaluated.metrics)
        if evaluated.picture is not None:
            self._trackers.images(run.iteration, "samples", evaluated.picture)

    def close(self) -> None:
        self._trackers.close()
