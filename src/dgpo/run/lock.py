"""The lock of a run folder: one process at a time trains in it.

RUN/lock is locked by the kernel (flock), which lets go when the process ends, however it ends. The file says who holds
it, for the message to others; it is emptied, not deleted, when the run ends, since another process may be waiting for
that very file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dgpo.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "lock"


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the lock of an existing run folder, or refuse in the name of who has it."""
    try:
        file = open(run / NAME, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write the run folder {run}: {error}") from error
    with file:
        _take(file.fileno(), run)
        _require_in_place(file.fileno(), run)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        _write(file.fileno(), json.dumps(holder) + "\n")
        try:
            yield
        finally:
            _write(file.fileno(), "")


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
    try:
        told = json.loads((run / NAME).read_text(encoding="utf-8"))
        return Holder(int(told["pid"]), str(told["host"]), str(told["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(named: Holder, run: Path) -> bool:
    """Only where the process may live is the lock tried, for as long as that takes another one cannot have it."""
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
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    return True


def _take(handle: int, run: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{run} is in use by {_holder(run)}. Wait until that has ended, or end it, and resume; a new run takes "
            "another --out"
        ) from None
    except OSError as error:  # a file system without locks
        print(f"{run} cannot be locked ({error.strerror}): start no second process on it", file=sys.stderr)


def _require_in_place(handle: int, run: Path) -> None:
    """The lock is that of the folder as it is now: between opening and locking, the run may have been moved aside."""
    path = run / NAME
    if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
        raise UserError(f"{run} was moved aside by another process at this moment; start again")


def _holder(run: Path) -> str:
    named = last_holder(run)  # None: it has taken the lock and not yet written
    return f"process {named.pid} on {named.host}, since {named.since}" if named else "another process"


def _write(handle: int, text: str) -> None:
    """Replace what the file says. A full disk does not matter: the lock holds without it."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
