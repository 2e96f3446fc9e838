"""What others ask of a run in progress, through files in its folder: RUN/requests/save, evaluate and stop.

Training looks for them once an iteration and takes them away. They work across processes, and are safe where nothing
listens: `ask` refuses a run that nobody trains, and a run that begins clears what an earlier one has left. A request
that cannot be deleted is taken once, and again only when somebody touches it.
"""

from __future__ import annotations

from pathlib import Path

from dgpo import distributed
from dgpo.errors import UserError, did_you_mean, warn
from dgpo.run import lock

SAVE, EVALUATE, STOP = "save", "evaluate", "stop"
REQUESTS = {
    SAVE: "write a checkpoint after this iteration",
    EVALUATE: "evaluate after this iteration; what is trained does not change",
    STOP: "save and end after this iteration, as Ctrl-C does",
}
FOLDER = "requests"


def ask(run: Path, request: str) -> None:
    """Ask the process that trains in this folder; refuse where there is none."""
    if request not in REQUESTS:
        raise UserError(f"there is no request {request!r}. {did_you_mean(request, REQUESTS)}")
    if lock.holder(run) is None:
        raise UserError(f"no process trains in {run.name}, so nobody would hear the request to {request}")
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / request).touch()


def waiting(run: Path) -> list[str]:
    """The requests that the run has not taken yet."""
    return [name for name in REQUESTS if _touched(run / FOLDER / name) is not None]


def take(run: Path) -> set[str]:
    """The requests since the last call, those that the main process finds, alike on every process."""
    found = [_taken(run)] if distributed.is_main() else []
    return distributed.gather_objects(found)[0]


def clear(run: Path) -> None:
    """Forget what was asked of whoever trained here before."""
    if distributed.is_main():
        _taken(run)


_answered: dict[Path, int] = {}
"""The requests that this process has taken and could not delete -> when each was last touched."""


def _taken(run: Path) -> set[str]:
    paths = {name: (run / FOLDER / name).absolute() for name in REQUESTS}
    touched = {name: when for name, path in paths.items() if (when := _touched(path)) is not None}
    new = {name for name, when in touched.items() if _answered.get(paths[name]) != when}
    for name in new:
        _delete(paths[name], touched[name])
    return new


def _touched(request: Path) -> int | None:
    """When a request was made, in nanoseconds; None where there is none."""
    try:
        return request.stat().st_mtime_ns
    except OSError:
        return None


def _delete(request: Path, touched: int) -> None:
    """Delete a request, or remember that it was taken: a folder, or another user's file, would be heard again."""
    try:
        request.unlink(missing_ok=True)
    except OSError as error:
        _answered[request] = touched
        warn([f"{request} cannot be deleted ({error.strerror}), so the run ignores it from now on: delete it by hand"])
