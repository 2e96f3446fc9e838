"""One process of a run that a cluster ends: a rank of test_clusters.py, forked, or started by torchrun.

Its reward misbehaves once, in the second iteration of one rank, as `scene` says.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from runs import colour, run, small
from torch import Tensor

from dgpo import Config
from dgpo.errors import RunFailed, UserError
from dgpo.rewards.base import Reward
from dgpo.run.grace import Grace
from dgpo.run.interrupt import Stopped

AT = 2
"""The call of the reward, which is called once an iteration, in which a scene happens."""


def config_of(model: Path, out: Path, **changes: Any) -> Config:
    """Three iterations, of which only the first state and the last are saved unless something ends the run."""
    return small(model, out, **{"iterations": 3, "checkpoint_every": 10, **changes})


def misbehaving(scene: str, rank: int, marks: Path) -> Reward:
    """The colour reward, which dies or sleeps on this rank: once, as a file remembers.

    scene: `killed`; `slow evaluation`, the first after training; `slow first evaluation`; `slow after slow`, where the
    first iteration has taken longer than half a minute as far as the run can tell; else asleep
    """
    calls: list[int] = []
    mark, at = marks / f"{scene}.mark", {"slow first evaluation": 1, "slow evaluation": 3}.get(scene, AT)

    def reward(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        calls.append(1)
        if len(calls) == at and os.environ.get("RANK", "0") == str(rank) and not mark.exists():
            mark.write_text(str(os.getpid()))
            if scene == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(100)
        return colour(images, prompts, metadata)

    return reward


def process(config: Config, scene: str, rank: int, environment: dict[str, str], log: str | None = None) -> None:
    """Run as the command line does, and end with its exit code. log: the file for what is said"""
    os.environ.update(environment)
    if log is not None:
        with open(log, "w") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    reward = misbehaving(scene, rank, Path(config.out or "").parent)
    if scene == "slow after slow":
        ended = Grace.end

        def end(grace: Grace) -> None:
            grace._since -= 30
            ended(grace)

        Grace.end = end
    try:
        result = run(config, resume="auto", reward_functions={"colour": reward})
    except (RunFailed, UserError) as error:
        print(f"dgpo: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except Stopped as stop:
        print(f"dgpo: {stop}", file=sys.stderr, flush=True)
        os._exit(stop.code)
    os._exit(75 if result.requeue else 130 if result.interrupted else 0)


if __name__ == "__main__":
    model, out, scene = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    process(config_of(model, out), scene, 1, {})
