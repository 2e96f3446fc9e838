"""What others ask of a run in progress, through files in its folder: RUN/requests/save, evaluate and stop.

Training looks for them once an iteration and takes them away. They work across processes, and are safe where nothing
listens: `ask` refuses a run that nobody trains, and a run that begins clears what an earlier one has left.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dgpo import distributed
from dgpo.errors import UserError, did_you_mean
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
    return [name for name in REQUESTS if (run / FOLDER / name).exists()]


def take(run: Path) -> set[str]:
    """The requests since the last call, those that the main process finds, alike on every process."""
    found = [_taken(run)] if distributed.is_main() else []
    return distributed.gather_objects(found)[0]


def clear(run: Path) -> None:
    """Forget what was asked of whoever trained here before."""
    if distributed.is_main():
        _taken(run)


def _taken(run: Path) -> set[str]:
    if not (run / FOLDER).is_dir():
        return set()
    found = set(waiting(run))
    with suppress(OSError):  # a folder that cannot be written to: they are done, and found again
        for name in found:
            (run / FOLDER / name).unlink()
    return found
