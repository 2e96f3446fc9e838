"""The Slurm scripts of docs/clusters.md, with stand-ins for Slurm's commands: when the job is requeued."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from waiting import until

PAGE = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text()
WHOLE, ENDING = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
ONE_GPU = WHOLE[: WHOLE.index("srun torchrun")] + ENDING
COMMANDS = {
    "srun": 'exec "$@"',
    "torchrun": 'echo $$ > started; trap "exit $CODE" TERM; while [ -e running ]; do sleep 0.02; done; exit $CODE',
    "scancel": 'echo "$@" >> said; kill -TERM "$(cat started)"',
    "scontrol": 'case "$1" in show) echo node-1; echo node-2;; *) echo "$@" >> said;; esac',
}


def result(folder: Path, script: str, code: int, warned: bool) -> tuple[int, list[str]]:
    """Exit code and what Slurm was asked, where the run ends with `code`, by the signal or by itself."""
    (folder / "bin").mkdir()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    (folder / "running").touch()
    for name, text in {**COMMANDS, "dgpo": COMMANDS["torchrun"]}.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_NNODES": "2"}
    job = subprocess.Popen(["bash", "-c", script], cwd=folder, env={**environment, "CODE": str(code)})
    until((folder / "started").exists)
    time.sleep(0.1)
    if warned:
        job.send_signal(signal.SIGUSR1)
    else:
        (folder / "running").unlink()
    ended = job.wait(20)
    return ended, (folder / "said").read_text().splitlines() if (folder / "said").exists() else []


@pytest.mark.parametrize(("script", "code"), [(WHOLE, 1), (ONE_GPU, 75)], ids=["two nodes", "one GPU"])
def test_a_run_that_is_ended_by_the_time_limit_is_requeued(tmp_path: Path, script: str, code: int) -> None:
    assert result(tmp_path, script, code, warned=True) == (code, ["--signal=TERM 17", "requeue 17"])


@pytest.mark.parametrize("script", [WHOLE, ONE_GPU], ids=["two nodes", "one GPU"])
def test_a_run_that_finished_or_failed_is_not(tmp_path: Path, script: str) -> None:
    for number, (code, warned) in enumerate([(0, False), (1, False), (0, True)]):
        (tmp_path / str(number)).mkdir()
        ended, said = result(tmp_path / str(number), script, code, warned)
        assert ended == code
        assert not any(line.startswith("requeue") for line in said)
