"""Writing that waits or fails, put in the place of the checkpoints' own; and whole processes that write so."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runs import REWARDS, run
from torch import Tensor

from dgpo import Config, distributed
from dgpo.run import checkpoint
from dgpo.run.callbacks import Callback
from dgpo.utils.files import save_tensors


def instead(act: Callable[[Path], None]) -> Callable[..., None]:
    """Of `checkpoint.save_tensors`: acts on the file's name before it is written."""

    def write(tensors: Mapping[str, Tensor], path: Path, *rest: Any) -> None:
        act(path)
        save_tensors(dict(tensors), path, *rest)

    return write


def behind() -> bool:
    """Whether this is the thread that writes while training goes on."""
    return threading.current_thread().name.startswith("saving")


class Terminate(Callback):
    """Sends SIGTERM to its own process once so many iterations have ended."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_iteration(self, run: Any, metrics: Any) -> None:
        if run.iteration == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def _hang(path: Path, iteration: int) -> None:
    if f"iteration-{iteration:06d}" in str(path) and path.name.startswith("optimizer"):
        time.sleep(600)


def hanging(config: Config, iteration: int) -> None:
    """A run that never ends to write this iteration's checkpoint."""
    checkpoint.save_tensors = instead(lambda path: _hang(path, iteration))
    run(config)


def terminated(config: Config) -> None:
    """A scheduler ends a run while the second checkpoint is being written and the next reward hangs."""
    calls: list[int] = []

    def reward(images: Tensor, prompts: list[str], metadata: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        return REWARDS["colour"](images, prompts, metadata)

    checkpoint.save_tensors = instead(lambda path: time.sleep(0.3 * behind()))
    run(config, reward_functions={"colour": reward})


def slow_on_one(config: Config) -> None:
    """The second rank is slow to write."""
    checkpoint.save_tensors = instead(lambda path: time.sleep(0.2 * behind() * distributed.rank()))
    run(config)


def full_disk(path: Path) -> None:
    """Fails the second checkpoint's thread, after the loop has gone on."""
    if behind() and "iteration-000002" in str(path):
        time.sleep(0.3)
        raise OSError(28, "No space left on device")


def fails_on_one(config: Config) -> None:
    """The second rank cannot write the second checkpoint in the background."""
    checkpoint.save_tensors = instead(lambda path: full_disk(path) if distributed.rank() else None)
    run(config)
