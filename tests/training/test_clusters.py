"""What clusters do to a run: signals with a limit, processes that die or hang, a command that is started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import children
import cluster_worker
import pytest
from cluster_worker import config_of
from runs import assert_same_run, newest, run
from waiting import until

from dgpo import Config, Result
from dgpo.commands.main import main
from dgpo.config import save_yaml
from dgpo.errors import UserError
from dgpo.run import lock

pytestmark = pytest.mark.slow
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def unhurt(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config_of(tiny_folder, tmp_path_factory.mktemp("unhurt") / "run")).run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ranks 0 to processes - 1 of a run; returns the processes, whose logs are rank-N.log."""
    context, started = children.context(), []

    def begin(config: Config, scene: str, rank: int = 0, processes: int = 1) -> list[Any]:
        ranks = []
        for own in range(processes):
            environment = {"RANK": str(own), "LOCAL_RANK": str(own), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            arguments = (config, scene, rank, environment, str(tmp_path / f"rank-{own}.log"))
            ranks.append(context.Process(target=cluster_worker.process, args=arguments))
            ranks[-1].start()
        started.extend(ranks)
        return ranks

    port = free_port()
    yield begin
    for process in started:
        if process.is_alive():
            process.kill()


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def await_mark(folder: Path, scene: str) -> None:
    """Until the reward misbehaves."""
    until((folder / f"{scene}.mark").exists)
    time.sleep(0.2)


def codes(processes: list[Any], seconds: float) -> list[int]:
    """Exit codes; those that have not ended in time count as None."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    return [process.exitcode for process in processes]


def go_on(config: Config) -> Result:
    return run(config, resume="auto")


# --- a scheduler's signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_slow_reward_is_dropped_and_the_last_iteration_saved(
    tiny_folder: Path, tmp_path: Path, unhurt: Path, start: Start, number: signal.Signals
) -> None:
    """The first iteration is finished and was not saved; the reward of the second takes longer than the grace."""
    config = config_of(tiny_folder, tmp_path / "run", grace_seconds=2.0)
    (process,) = start(config, "slow")
    await_mark(tmp_path, "slow")
    os.kill(process.pid, number)
    assert codes([process], 4) == [75]
    said = (tmp_path / "rank-0.log").read_text()
    assert f"stopped by {number.name}" in said
    assert f"dgpo train --resume {tmp_path / 'run'}" in said
    assert newest(tmp_path / "run") == 1
    assert lock.last_holder(tmp_path / "run") is None, "the lock is let go"
    assert not go_on(config).interrupted
    assert_same_run(tmp_path / "run", unhurt, 3)
    assert go_on(config) == (tmp_path / "run", 3, {}, False, False), "and says so"


def test_an_iteration_that_cannot_fit_is_dropped_at_once(
    tiny_folder: Path, tmp_path: Path, unhurt: Path, start: Start
) -> None:
    """The first iteration took longer than the grace, so there is nothing to wait for."""
    config = config_of(tiny_folder, tmp_path / "run", grace_seconds=20.0)
    (process,) = start(config, "slow after slow")
    await_mark(tmp_path, "slow after slow")
    os.kill(process.pid, signal.SIGTERM)
    assert codes([process], 3) == [75]
    assert newest(tmp_path / "run") == 1


def test_an_evaluation_is_dropped_and_made_up_for(tiny_folder: Path, tmp_path: Path, start: Start) -> None:
    """It is the last one: the run has had all its iterations, and is not finished for all that."""
    prompts = tmp_path / "eval.txt"
    prompts.write_text("a cup\n")
    changes = {"eval_prompts": {"seen": str(prompts)}, "eval_images_per_prompt": 1, "num_samples": 1, "iterations": 1}
    config = config_of(tiny_folder, tmp_path / "run", grace_seconds=2.0, eval_every=1, **changes)
    (process,) = start(config, "slow evaluation")
    await_mark(tmp_path, "slow evaluation")
    os.kill(process.pid, signal.SIGTERM)
    assert codes([process], 4) == [75]
    assert newest(tmp_path / "run") == 1
    assert not (tmp_path / "run" / "final").exists()
    assert not go_on(config).interrupted
    assert (tmp_path / "run" / "final").exists()
    run(replace(config, out=str(tmp_path / "unhurt")))
    assert_same_run(tmp_path / "run", tmp_path / "unhurt", 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_evaluation_is_dropped_and_done_again(
    tiny_folder: Path, tmp_path: Path, start: Start, processes: int
) -> None:
    prompts = tmp_path / "eval.txt"
    prompts.write_text("a cup\ntwo dogs\n")
    changes = {"eval_prompts": {"seen": str(prompts)}, "eval_images_per_prompt": 1, "num_samples": 1, "iterations": 1}
    config = config_of(tiny_folder, tmp_path / "run", grace_seconds=2.0, eval_every=1, **changes)
    ranks = start(config, "slow first evaluation", rank=processes - 1, processes=processes)
    await_mark(tmp_path, "slow first evaluation")
    os.kill(ranks[-1].pid, signal.SIGTERM)
    assert codes(ranks, 9) == [75] * processes
    assert newest(tmp_path / "run") == 0
    assert lock.last_holder(tmp_path / "run") is None, "the lock is let go"
    assert go_on(config).iterations == 1


def test_of_two_processes_one_hears_the_signal_and_both_end(
    tiny_folder: Path, tmp_path: Path, unhurt: Path, start: Start
) -> None:
    """The first waits in a collective for the reward of the second, which is the one that is told."""
    config = config_of(tiny_folder, tmp_path / "run", grace_seconds=5.0)
    ranks = start(config, "slow", rank=1, processes=2)
    await_mark(tmp_path, "slow")
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert codes(ranks, 9) == [75, 75]
    assert newest(tmp_path / "run") == 1
    assert not go_on(config).interrupted
    assert newest(tmp_path / "run") == 3


# --- processes that die or hang


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_is_named_and_the_run_saved(
    tiny_folder: Path, tmp_path: Path, start: Start, rank: int
) -> None:
    config = config_of(tiny_folder, tmp_path / "run", rank_timeout_minutes=0.05)
    ranks = start(config, "hangs", rank, processes=2)
    await_mark(tmp_path, "hangs")
    assert codes(ranks, 15) == [1, 1]
    said = (tmp_path / "rank-0.log").read_text()
    assert f"waited 3 s (rank_timeout_minutes) in vain: rank {rank} of 2 (process {ranks[rank].pid} on " in said
    assert "lives, and has been at 'scoring' for" in said
    assert newest(tmp_path / "run") == 1


def test_a_process_that_died_is_named_and_the_run_saved(tiny_folder: Path, tmp_path: Path, start: Start) -> None:
    config = config_of(tiny_folder, tmp_path / "run")
    ranks = start(config, "killed", rank=1, processes=2)
    assert codes(ranks, 60) == [1, -signal.SIGKILL]
    said = (tmp_path / "rank-0.log").read_text()
    assert f"rank 1 of 2 (process {ranks[1].pid} on {socket.gethostname()}) has died" in said
    assert newest(tmp_path / "run") == 1


def test_torchrun_starts_a_killed_process_again(tiny_folder: Path, tmp_path: Path, unhurt: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    command = [sys.executable, *launch, cluster_worker.__file__, str(tiny_folder), str(tmp_path / "run"), "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "killed.mark").exists()
    assert newest(tmp_path / "run") == 3


def test_a_taken_port_is_told(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: another program has that port. Set MASTER_PORT"):
            run(config_of(tiny_folder, tmp_path / "run"))


# --- a command that is repeated


@pytest.fixture
def file(tiny_folder: Path, tmp_path: Path) -> Path:
    """The config file of a run without evaluations, whose reward has a name."""
    path = tmp_path / "run.yaml"
    save_yaml(config_of(tiny_folder, tmp_path / "run", iterations=1, rewards={"runs:colour": 1.0}), path)
    return path


def test_auto_creates_continues_and_ends(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(file), "--resume", "auto"]
    assert main(command) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert "has finished" not in capsys.readouterr().out
    assert main(command) == 0
    assert f"{tmp_path / 'run'} has finished, after 1 iterations: there is nothing to do" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert main([*command, "--iterations", "2"]) == 0
    assert newest(tmp_path / "run") == 2
    assert main(command) == 0, "the run has more than it is asked for"
    assert newest(tmp_path / "run") == 2
    shutil.rmtree(tmp_path / "run" / "final")
    assert main([*command, "--iterations", "2"]) == 0
    assert (tmp_path / "run" / "final").exists(), "what a kill has cut off is made up for"


@pytest.mark.parametrize("iterations", ["1", "2"])
def test_auto_refuses_a_run_of_another_config(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], iterations: str
) -> None:
    """Whether the run has finished or not."""
    assert main(["train", str(file), "--resume", "auto"]) == 0
    assert main(["train", str(file), "--resume", "auto", "--seed", "5", "--iterations", iterations]) == 2
    assert "was started with other values of seed" in capsys.readouterr().err


def test_auto_is_no_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A run folder that is called so is continued by its path; before, by its name."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(file), "--out", "auto"]) == 0
    assert main(["train", "--resume", "auto"]) == 2
    assert "continue it with --resume ./auto" in capsys.readouterr().err
    assert main(["train", "--resume", "./auto", "--iterations", "2"]) == 0
    assert newest(tmp_path / "auto") == 2


def test_auto_and_overwrite_contradict_each_other(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(file), "--resume", "auto", "--overwrite"]) == 2
    assert "give one of them" in capsys.readouterr().err
