"""One process at a time trains in a run folder; the others are told who has it."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from runs import run, small

from dgpo.errors import UserError
from dgpo.run import lock


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_second_is_refused_in_the_name_of_the_first_and_may_come_later(tmp_path: Path) -> None:
    with lock.held(tmp_path):
        with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on .*, since 20.*another --out"):
            lock.held(tmp_path).__enter__()
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):  # what it says outlives a refusal
            lock.held(tmp_path).__enter__()
    with lock.held(tmp_path):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with lock.held(tmp_path):
            os.write(writer, b".")
            signal.pause()
    os.read(reader, 1)
    with pytest.raises(UserError, match=f"process {child} on"):
        lock.held(tmp_path).__enter__()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with lock.held(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the run folder"):
        lock.held(tmp_path / "none").__enter__()


@pytest.mark.parametrize("resume", [True, False])
def test_two_processes_on_one_run(tiny_folder: Path, tmp_path: Path, resume: bool) -> None:
    """The run in progress is left as it is, whichever way the second process wants it."""
    config = small(tiny_folder, tmp_path / "run", iterations=1)
    run(config)
    with lock.held(tmp_path / "run"):
        before = contents(tmp_path / "run")
        with pytest.raises(UserError, match="is in use by process" if resume else "already holds something"):
            run(config, resume=resume)
        assert contents(tmp_path / "run") == before


def test_two_new_runs_at_once_in_one_empty_folder(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with lock.held(tmp_path / "run"), pytest.raises(UserError, match="is in use by process"):
        run(small(tiny_folder, tmp_path / "run", iterations=1))


def test_others_see_who_trains_and_that_a_killed_one_does_not(tmp_path: Path) -> None:
    assert lock.holder(tmp_path) is None
    with lock.held(tmp_path):
        found = lock.holder(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
    assert lock.holder(tmp_path) is None
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    told = {"host": socket.gethostname(), "pid": child, "since": "2026-01-02 03:04:05"}
    (tmp_path / "lock").write_text(json.dumps(told))
    assert lock.last_holder(tmp_path) == (child, told["host"], told["since"])
    assert lock.holder(tmp_path) is None, "it has ended"
    (tmp_path / "lock").write_text(json.dumps({**told, "pid": os.getpid()}))
    assert lock.holder(tmp_path) is None, "the number of a process that has ended was given to another one"
