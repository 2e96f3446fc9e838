"""Real processes that may be killed or fail, forked from one that has imported everything, which takes longest."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [path for path in (str(TESTS / "helpers"), str(TESTS / "faults")) if path not in sys.path]


def context() -> Any:
    """Of multiprocessing. Its processes see this one's sys.path and environment, with one thread each."""
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    made = multiprocessing.get_context("forkserver")
    preloaded = ["runs", "dgpo.commands.main", "dgpo.commands.configs", "dgpo.training.loop", "torch.distributed.fsdp"]
    made.set_forkserver_preload(preloaded)
    return made


def command(processes: Any, words: list[str], log: Path, environment: Mapping[str, str]) -> Any:
    """`dgpo WORDS` as a process, not started; what it says goes to `log`."""
    return processes.Process(target=_command, args=(words, str(log), dict(environment)))


def _command(words: list[str], log: str, environment: dict[str, str]) -> None:
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    import torch

    from dgpo.commands.main import main

    torch.set_num_threads(1)
    sys.exit(main(words))
