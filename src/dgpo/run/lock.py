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
    try:
        holder = json.loads((run / NAME).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has taken the lock and not yet written
        return "another process"


def _write(handle: int, text: str) -> None:
    """Replace what the file says. A full disk does not matter: the lock holds without it."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)
