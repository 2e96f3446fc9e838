"""What stops a run loses nothing: whatever is raised in the loop, the iterations that are whole become a checkpoint.

The state is whole until the first optimizer step of an iteration and again after the last. Where it is not, or where
weights are not finite, they are kept in RUN/failed to be looked at, and the newest good checkpoint stays the one to go
back to. The error then says how to go on, and its traceback lies in RUN/failures, beside the prompt and the picture on
which a reward failed.

Ranks meet here only after an error that all of them raise (`distributed.shared`). After one of a single rank the others
wait in a collective, which fails when that rank's process has gone; the main process then saves alone. It cannot where
the network is sharded: all ranks save together, or none does.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from dgpo import distributed
from dgpo.errors import NonFiniteError, RunFailed, UserError
from dgpo.run import checkpoint, failure

LESS_MEMORY = (
    "It may take less memory with --micro-batch-size 1, --sampling.batch-size 1, --gradient-checkpointing True or "
    "--vae-slicing True."
)


class Progress(Protocol):
    """Of the run's state, what says whether it is whole."""

    iteration: int  # finished
    step: int  # optimizer steps, with the one that is being taken
    first_step: int  # of the iteration that has not finished


class Kept(NamedTuple):
    """How saving went."""

    newest: Path | None  # the newest good checkpoint
    remarks: list[str]  # what else a person must know, a sentence each


@contextlib.contextmanager
def rescue(
    run: Path,
    state: Progress,
    broken: Callable[[], list[str]],
    write: Callable[[Path], object],
    sharded: bool = False,
    resume: str = "",
) -> Iterator[None]:
    """Save when the block fails, and raise a RunFailed that says how to go on.

    broken: names the weight sets that are not finite; write: writes a checkpoint of the present state below a folder;
    sharded: whether all ranks must call them; resume: the command that goes on
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        told = [_told(run, state.iteration, error)]
        kept = _kept(run, state, broken, write, distributed.is_shared(error), sharded)
        if kept is not None:
            told += [
                *kept.remarks,
                *_way_on(resume or f"dgpo train --resume {run}", state.iteration, kept.newest, error),
            ]
        failure.note(run, " ".join(told))
        if not isinstance(error, RunFailed):
            raise RunFailed(" ".join(told)) from error
        error.plain, error.args = str(error), (" ".join(told), *error.args[1:])
        raise


def _kept(
    run: Path,
    state: Progress,
    broken: Callable[[], list[str]],
    write: Callable[[Path], object],
    together: bool,
    sharded: bool,
) -> Kept | None:
    """What the main process could save; None where this rank cannot know it."""
    if sharded and not together:
        remark = "The processes share the weights, and one has failed alone: the others could not save."
        return Kept(checkpoint.latest_good(run), [remark]) if distributed.is_main() else None
    own = [_saved(run, state, broken, write)] if distributed.is_main() or sharded else []
    kept = distributed.gather_objects(own) if together else own
    return kept[0] if kept else None


def _saved(run: Path, state: Progress, broken: Callable[[], list[str]], write: Callable[[Path], object]) -> Kept:
    """A checkpoint, or where the state is not good the weights kept aside."""
    remarks = []
    try:
        bad = broken()
        if bad:
            remarks.append(f"Weights are not finite ({', '.join(bad)}): no checkpoint was made of them.")
        if state.step != state.first_step:
            remarks.append(f"Iteration {state.iteration + 1} had already taken a step.")
        if not remarks:
            write(run)
            return Kept(checkpoint.latest(run), [])
        if distributed.is_main():
            checkpoint.rewind(run / "failed", state.iteration - 1)
        write(run / "failed")
        remarks.append(f"The weights as they are lie in {run / 'failed'}, to be looked at.")
    except Exception as error:
        remarks.append(f"Saving failed too: {type(error).__name__}: {error}.")
    return Kept(checkpoint.latest_good(run), remarks)


def _told(run: Path, iteration: int, error: BaseException) -> str:
    """What happened, and where its traceback is."""
    if isinstance(error, RunFailed):
        return _sentence(str(error))
    what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    message = f"the run failed after iteration {iteration}: {_sentence(what)}"
    place = "" if distributed.is_main() else f"-rank{distributed.rank()}"
    path = run / "failures" / f"iteration-{iteration + 1:06d}{place}.txt"
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError:
        print(text, file=sys.stderr)
        return message
    return f"{message} The traceback is in {path}."


def _way_on(resume: str, iteration: int, newest: Path | None, error: BaseException) -> Iterator[str]:
    """What the run can be continued from, and what should be changed first."""
    if newest is None:
        yield "There is no checkpoint to go on from: start the run again."
        return
    saved = checkpoint.iteration_of(newest)
    if saved == iteration:
        yield f"Nothing is lost: iteration {saved} is saved in {newest}."
    else:
        yield f"The last good checkpoint is {newest}; what came after iteration {saved} is lost."
    yield f"Go on from there with: {resume}"
    if any(isinstance(cause, torch.OutOfMemoryError) for cause in (error, error.__cause__)):
        yield f"({LESS_MEMORY[:-1]})."
    if isinstance(error, NonFiniteError):
        lora = newest / "lora"
        start = f", which may begin with this checkpoint's LoRA: --lora.start {lora}" if lora.is_dir() else ""
        yield (
            "(the same numbers may come again). A smaller optimizer.lr or a larger kl_coef, which a resumed run cannot "
            f"change, take a new run{start}."
        )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
