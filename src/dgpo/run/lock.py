"""The lock of a run folder: one process at a time trains in it.

RUN/lock is locked by the kernel (flock), which lets go when the process ends, however it ends. On a shared disk that
may hold for one machine only, so the file also says who holds it, and its holder touches it every BEAT seconds. A lock
of another machine that was not touched for STALE seconds has no holder any more: that machine was killed or cut off.
Ages are told by the disk's own clock. A holder that finds another name in its lock ends, lest two write into one run.

The file is emptied, not deleted, when the run ends, since another process may be waiting for that very file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import psutil

from dgpo.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "lock"
BEAT = 15.0
"""Seconds between two touches."""
STALE = 120.0
"""Seconds without one after which a lock of another machine is free: NFS may show a touch a minute late."""


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the lock of an existing run folder, or refuse in the name of who has it."""
    file = _open(run)
    try:
        if _take(file, run):
            file.close()
            file = _open(run)
            _take(file, run)
        _require_in_place(file.fileno(), run)
        _write(file.fileno(), json.dumps({**_this_process(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")
        try:
            with _touched(run):
                yield
        finally:
            _write(file.fileno(), "")
    finally:
        file.close()


class Holder(NamedTuple):
    """Who holds a lock."""

    pid: int
    host: str
    since: str


def holder(run: Path) -> Holder | None:
    """Who trains in this folder; None: nobody. A process that was killed holds nothing, whatever it has left."""
    named = last_holder(run)
    return named if named and _alive(named, run) else None


def last_holder(run: Path) -> Holder | None:
    """Whoever has not ended its run: it trains, or was killed."""
    told = _told(run)
    try:
        return Holder(int(told["pid"]), str(told["host"]), str(told["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def _told(run: Path) -> dict[str, Any]:
    """What the file says: nothing where it is unreadable."""
    try:
        told = json.loads((run / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _this_process() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}


def _machine() -> str:
    """What differs between machines, and between two starts of one; of containers on one machine it is the same."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _is_here(run: Path) -> bool:
    """Whether the named holder was started on this machine, whose kernel then knows whether it holds the lock."""
    told = _told(run)
    return told["machine"] == _machine() if "machine" in told else told.get("host") == socket.gethostname()


def _alive(named: Holder, run: Path) -> bool:
    """Only where the process may live is the lock tried, for as long as that takes another one cannot have it."""
    if not _is_here(run):
        with contextlib.suppress(OSError):
            return time.time() - (run / NAME).stat().st_mtime < STALE
        return False
    if named.host == socket.gethostname() and not _exists(named.pid):
        return False
    if fcntl is None:
        return True
    with contextlib.suppress(OSError), open(run / NAME, encoding="utf-8") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
    return True  # a file system without locks


def _exists(pid: int) -> bool:
    return pid < 2**31 and psutil.pid_exists(pid)  # a number from a damaged file may be any


def _open(run: Path) -> TextIO:
    try:
        return open(run / NAME, "a", encoding="utf-8")
    except OSError as error:
        if not (run / NAME).exists():
            raise UserError(f"cannot write the run folder {run}: {error}") from error
        raise UserError(
            f"cannot open {run / NAME}, the lock of the run: {error.strerror}. Give it to the user who trains, or "
            "delete it where no process trains there"
        ) from error


def _take(file: TextIO, run: Path) -> bool:
    """Lock the file, or refuse; True: its holder on another machine has gone, and it must be opened anew."""
    locked = _flock(file, run)
    named = last_holder(run)
    if named is None:
        if locked is False:
            raise _refusal(run)
        return False
    if not _is_here(run):
        _require_stale(run)
        if locked is False:  # by the disk's server, on behalf of a machine that has gone
            (run / NAME).unlink(missing_ok=True)
            return True
        return False
    without_kernel = locked is None and _exists(named.pid) and _age(run) < STALE
    if locked is False or without_kernel:
        raise _refusal(run)
    return False


def _flock(file: TextIO, run: Path) -> bool | None:
    """Whether the kernel gave the lock; None: it has none to give."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(
            f"{run} cannot be locked ({error.strerror}): two processes that start on it at the same moment would not "
            "see each other",
            file=sys.stderr,
        )
        return None
    return True


def _require_stale(run: Path) -> None:
    """Refuse where the holder, on another machine, touches its lock; wait until that is known."""
    touched, told = _touch(run), False
    while (left := STALE - _age(run)) > 0:
        if not told:
            print(
                f"{run} was in use by {_holder(run)}: waiting {left:.0f} s at most, to see whether it still is",
                file=sys.stderr,
                flush=True,
            )
            told = True
        time.sleep(min(1.0, left))
        if _touch(run) != touched:
            raise _refusal(run)


def _touch(run: Path) -> float:
    """When the lock was last touched; a file that was just opened is as the disk's server knows it."""
    try:
        with open(run / NAME, encoding="utf-8") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


def _age(run: Path) -> float:
    """Seconds since the lock was last touched, by the clock of its disk."""
    with tempfile.TemporaryFile(dir=run) as new:
        return os.fstat(new.fileno()).st_mtime - _touch(run)


def _require_in_place(handle: int, run: Path) -> None:
    """The lock is that of the folder as it is now: between opening and locking, the run may have been moved aside."""
    path = run / NAME
    if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
        raise UserError(f"{run} was moved aside by another process at this moment; start again")


@contextlib.contextmanager
def _touched(run: Path) -> Iterator[None]:
    """Touch the lock as long as the block lasts, and end the process if another one has taken it."""
    ended, mine = threading.Event(), last_holder(run)

    def touch() -> None:
        while not ended.wait(BEAT):
            other = last_holder(run)
            if mine is not None and other not in (mine, None):
                os.write(2, f"dgpo: {run} was taken over by {_holder(run)}: this process ends, unsaved\n".encode())
                os._exit(1)
            with contextlib.suppress(OSError):
                os.utime(run / NAME)

    thread = threading.Thread(target=touch, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _refusal(run: Path) -> UserError:
    return UserError(
        f"{run} is in use by {_holder(run)}. Wait until that has ended, or end it, and resume; a new run takes "
        "another --out"
    )


def _holder(run: Path) -> str:
    named = last_holder(run)  # None: it has taken the lock and not yet written
    return f"process {named.pid} on {named.host}, since {named.since}" if named else "another process"


def _write(handle: int, text: str) -> None:
    """Replace what the file says. A full disk does not matter: the kernel's lock holds without it."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
