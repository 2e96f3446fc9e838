"""One rank of test_rescue.py, started by torchrun: failures of one rank alone, in and outside of common work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from runs import colour, run, small

from dgpo import distributed
from dgpo.errors import RunFailed
from dgpo.training import loop, update


class Unpicklable(Exception):
    """It is made with two words and keeps one, so that another process cannot make it again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)


def failing(function: Any, call: int, error: BaseException) -> Any:
    """`function`, which raises at one call, on the second rank only."""
    calls: list[int] = []

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call and distributed.rank() == 1:
            raise error
        return function(*arguments, **named)

    return wrapped


def main(model: Path, out: Path) -> None:
    distributed.init("cpu")
    torch.set_num_threads(1)
    whole, alone = update.fixed_velocities, loop.describe
    for name, error in {
        "memory": torch.OutOfMemoryError("no room on the second rank"),
        "unpicklable": Unpicklable("one word", "another"),
    }.items():
        update.fixed_velocities = failing(whole, 3, error)  # an iteration has two points
        try:
            run(small(model, out / name, checkpoint_every=10))
        except RunFailed as failure:
            (out / f"{name}-{distributed.rank()}.json").write_text(json.dumps(str(failure)))
    update.fixed_velocities = whole
    loop.describe = failing(alone, 2, KeyError("on the second rank only"))
    run(small(model, out / "alone", checkpoint_every=10), reward_functions={"colour": colour})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
