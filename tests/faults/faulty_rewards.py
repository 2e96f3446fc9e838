"""Rewards that fail in every way that is known; each run must lose nothing, say so and go on.

    python tests/faults/faulty_rewards.py           writes benchmarks/results/faults/rewards.json

`dgpo train` is run with a reward that is well in the first iteration and has the fault in the second. It must end with
code 1 and one message, with the first iteration saved and the prompt and the picture kept; resumed with a reward that
is well, it must equal the run that was never disturbed, bit for bit. Where the process itself is ended there is no
message, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import torch
from runs import assert_same_run, colour, save_pipeline, small

from dgpo import UserError
from dgpo.config import save_yaml
from dgpo.rewards.base import RewardError
from dgpo.run import checkpoint
from dgpo.utils.files import whole

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "faults" / "rewards.json"
ITERATIONS = 3


def raising(error: BaseException) -> Callable[[torch.Tensor], Any]:
    def reward(images: torch.Tensor) -> Any:
        raise error

    return reward


class Unpicklable(Exception):
    """Cannot be sent to another process: it is made with two words and keeps one."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)


FAULTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "ConnectionError": raising(ConnectionError("the judge is away")),
    "AssertionError": raising(AssertionError()),
    "KeyError": raising(KeyError("score")),
    "IndexError": lambda images: images[99],
    "MemoryError": raising(MemoryError()),
    "OutOfMemoryError": raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
    "RecursionError": raising(RecursionError("too deep")),
    "StopIteration": raising(StopIteration()),
    "full disk": raising(OSError(errno.ENOSPC, "No space left on device")),
    "an exception that cannot be pickled": raising(Unpicklable("one", "other")),
    "UserError": raising(UserError("the prompt has no text in quotes")),
    "RewardError of an image that is not there": raising(RewardError("no such image", 99, "found no image")),
    "sys.exit()": raising(SystemExit()),
    "sys.exit(0)": raising(SystemExit(0)),
    "sys.exit(3)": raising(SystemExit(3)),
    "sys.exit('a message')": raising(SystemExit("a message")),
    "nan": lambda images: torch.full((len(images),), torch.nan),
    "infinity": lambda images: torch.full((len(images),), torch.inf),
    "two scores an image": lambda images: images.mean((2, 3))[:, :2],
    "one score too few": lambda images: images.mean((1, 2, 3))[1:],
    "one number": lambda images: 0.5,
    "None": lambda images: None,
    "text": lambda images: ["good"] * len(images),
    "an empty dict": lambda images: {},
    "os._exit(0)": lambda images: os._exit(0),
    "SIGKILL": lambda images: os.kill(os.getpid(), signal.SIGKILL),
}
UNHEARD = ("os._exit(0)", "SIGKILL")
"""They end the process at once."""

calls: list[int] = []


def reward(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
    """The colour reward, but from the second call on with the fault that the environment names."""
    calls.append(len(prompts))
    fault = os.environ.get("FAULT")
    return FAULTS[fault](images) if fault and len(calls) > 1 else colour(images, prompts, metadata)


def dgpo(words: list[str | Path], log: Path, fault: str = "") -> tuple[int, str]:
    """The exit code of a command and what it said."""
    process = children.command(children.context(), [str(word) for word in words], log, {"FAULT": fault})
    process.start()
    process.join()
    return process.exitcode, log.read_text()


def undisturbed(folder: Path) -> Path:
    """A config file, and the run of it that nothing disturbs."""
    model = save_pipeline(folder / "tiny")
    config = small(
        model, folder / "unhurt", iterations=ITERATIONS, rewards={"faulty_rewards:reward": 1.0}, checkpoint_every=10
    )
    save_yaml(config, folder / "config.yaml")
    code, said = dgpo(["train", folder / "config.yaml"], folder / "log")
    assert code == 0, said
    return folder / "config.yaml"


def trial(fault: str, config: Path) -> dict[str, Any]:
    """What one faulty run left, and whether it was all that it must be."""
    folder = config.parent
    out = folder / f"run-{list(FAULTS).index(fault)}"
    code, said = dgpo(["train", config, "--out", out], folder / "log", fault)
    saved = checkpoint.iteration_of(checkpoint.latest(out) or out)
    kept = sorted(path.suffix for path in (out / "failures").glob("*"))
    messages = [line for line in said.splitlines() if line.startswith("dgpo: ")]
    resumed, _ = dgpo(["train", "--resume", out], folder / "log")
    try:
        assert_same_run(out, folder / "unhurt", ITERATIONS)
        equal = True
    except AssertionError:
        equal = False
    heard = fault not in UNHEARD
    told = len(messages) == 1 and "Traceback" not in said and f"--resume {out}" in messages[0]
    well = resumed == 0 and equal and saved == int(heard)
    if heard:
        trace = set() if "returned" in "".join(messages) else {".txt"}
        well = well and code == 1 and told and {".png", ".json"} | trace <= {*kept}
    row = {"fault": fault, "code": code, "messages": messages, "saved": saved, "kept": kept, "equal": equal}
    return {**row, "passed": well, "messages": [message.replace(str(folder), "") for message in messages]}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        config = undisturbed(Path(folder))
        rows = [trial(fault, config) for fault in FAULTS]
    found = {"faults": len(rows), "passed": sum(row["passed"] for row in rows), "trials": rows}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with whole(RESULT) as unfinished:
        unfinished.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['passed']} of {found['faults']} passed")
    return int(found["passed"] != found["faults"])


if __name__ == "__main__":
    sys.exit(main())
