"""One process at a time trains in a run folder; the others are told who has it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
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


# --- across machines: what flock may not tell


def elsewhere(folder: Path, touched: float) -> dict[str, object]:
    """The lock of a process on another machine, touched so many seconds ago."""
    told = {"host": "node-7", "pid": os.getpid(), "machine": "another", "since": "2026-01-02 03:04:05"}
    (folder / "lock").write_text(json.dumps(told) + "\n")
    os.utime(folder / "lock", (time.time() - touched,) * 2)
    return told


def test_a_holder_on_another_machine_that_lives_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is refused before the lock was touched again: it might be of a machine that has just died."""
    elsewhere(tmp_path, touched=20)
    living = threading.Timer(0.3, os.utime, [tmp_path / "lock"])
    living.start()
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on node-7, since 2026-01-02 03:04:05"):
        lock.held(tmp_path).__enter__()
    assert "was in use by process" in capsys.readouterr().err
    assert lock.holder(tmp_path) is not None


def test_a_holder_on_another_machine_that_died_is_waited_for_and_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "STALE", 1.0)
    elsewhere(tmp_path, touched=0)
    started = time.monotonic()
    with lock.held(tmp_path):
        assert time.monotonic() - started > 0.9
        found = lock.holder(tmp_path)
        assert found is not None
        assert found.host == socket.gethostname()
    elsewhere(tmp_path, touched=5)
    assert lock.holder(tmp_path) is None
    assert "was in use by process" in capsys.readouterr().err
    with lock.held(tmp_path):
        assert capsys.readouterr().err == "", "nobody waits for what is known to be dead"


def test_the_lock_that_a_disk_keeps_for_a_dead_machine_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS 3 does: the kernel refuses, and the holder will never touch the file again."""
    monkeypatch.setattr(lock, "STALE", 0.5)
    with open(tmp_path / "lock", "a") as file:
        lock.fcntl.flock(file.fileno(), lock.fcntl.LOCK_EX)  # pyright: ignore[reportOptionalMemberAccess]
        elsewhere(tmp_path, touched=5)
        with lock.held(tmp_path):
            found = lock.holder(tmp_path)
            assert found is not None
            assert found.host == socket.gethostname()


def test_without_locks_of_the_kernel_the_file_alone_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of this machine is known to have died at once, one of another when it touches its lock no more."""
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.held(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        lock.held(tmp_path).__enter__()
    child = os.fork()
    if not child:
        with lock.held(tmp_path):
            os._exit(0)
    os.waitpid(child, 0)
    assert lock.last_holder(tmp_path) is not None
    with lock.held(tmp_path):
        pass


def test_a_holder_touches_its_lock_and_ends_where_another_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    child = os.fork()
    if not child:
        with lock.held(tmp_path):
            os.utime(tmp_path / "lock", (0, 0))
            while (tmp_path / "lock").stat().st_mtime == 0:
                time.sleep(0.01)
            elsewhere(tmp_path, touched=0)
            time.sleep(20)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert f"{tmp_path} was taken over by process {child} on node-7" in capfd.readouterr().err


@pytest.mark.parametrize("text", [b"", b"\xff\xfe{", b"[1, 2]", b'{"pid": "many", "host": 1}'])
def test_a_lock_that_says_nothing_readable_is_nobodys(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "lock").write_bytes(text)
    assert lock.holder(tmp_path) is None
    with lock.held(tmp_path), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        lock.held(tmp_path).__enter__()


def test_a_lock_of_no_possible_process_is_nobodys(tmp_path: Path) -> None:
    with lock.held(tmp_path):
        told = json.loads((tmp_path / "lock").read_text())
    (tmp_path / "lock").write_text(json.dumps({**told, "pid": 2**40}))
    assert lock.holder(tmp_path) is None


def test_a_lock_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match=r"cannot open .*/lock, the lock of the run: Is a directory"):
        lock.held(tmp_path).__enter__()
