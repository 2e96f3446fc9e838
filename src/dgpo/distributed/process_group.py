"""Which processes make up a run: joined, counted and left. Without a launcher there is one."""

from __future__ import annotations

import atexit
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from dgpo.distributed import store, watch
from dgpo.errors import UserError

_LAUNCHED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def init(device: str | torch.device = "cpu", timeout_minutes: float = 15) -> torch.device:
    """Join the process group that torchrun describes, and return this rank's own device.

    timeout_minutes: how long a process waits for another one, which then counts as lost (watch.py)
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device!r} is unknown; use auto, cpu, cuda or cuda:1") from error
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected == 1:
        return _own(device)
    missing = [name for name in _LAUNCHED if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={expected}, but {', '.join(missing)} not set; start with "
            f"`torchrun --standalone --nproc_per_node {expected} ...`, or unset WORLD_SIZE to run one process"
        )
    if device.type == "cuda" and device.index is not None:
        raise UserError(f"{device} would be shared by {expected} processes; give 'cuda', and each takes its own")
    if device.type == "mps":
        raise UserError(
            f"{expected} processes cannot share Apple's mps; start one without torchrun, or take device cpu"
        )
    device = _own(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        _join(backend, expected, timeout_minutes)
    joined = _count(device)
    if joined != expected:
        raise UserError(f"WORLD_SIZE={expected}, but {joined} processes joined; check how the run is launched")
    return device


def _join(backend: str, expected: int, minutes: float) -> None:
    """Meet the other processes at the launcher's address."""
    address, own = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", int(os.environ["RANK"])
    # the collectives' own limit comes later than that of the watch, which says what it knows and saves
    limit = timedelta(minutes=minutes, seconds=60)
    try:
        shared = store.connected(60 * minutes, host=own == 0)
        name = store.agreed_name(shared, own, expected, 60 * minutes)
        place = dist.PrefixStore(name, shared)
        dist.init_process_group(backend, store=place, rank=own, world_size=expected, timeout=limit)
        watch.start(name, 60 * minutes)
    except (RuntimeError, ValueError) as error:
        taken = "EADDRINUSE" in str(error) or "address already in use" in str(error)
        raise UserError(
            f"rank {own} of {expected} cannot meet the others at {address}: "
            + (
                "another program has that port. Set MASTER_PORT to a free one, or start with torchrun --standalone, "
                "which finds one"
                if taken
                else f"{_first_line(error)}. Look whether all {expected} were started, with the same address, and "
                "whether a firewall is between their machines"
            )
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def _count(device: torch.device) -> int:
    """How many processes there are, by asking them."""
    ones = torch.ones((), dtype=torch.int64, device=device)
    dist.all_reduce(ones)
    return int(ones)


def _own(device: torch.device) -> torch.device:
    """The device of this rank, made the current one: `cuda` becomes `cuda:LOCAL_RANK`."""
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(
            f"device={str(device)!r}, and PyTorch sees no CUDA GPU here ({_why_no_gpu()}); take auto or cpu"
        )
    wanted = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if wanted >= count:
        asked = f"LOCAL_RANK={wanted}" if device.index is None else f"device={str(device)!r}"
        raise UserError(f"{asked} needs {wanted + 1} GPUs on this machine; {count} are visible")
    torch.cuda.set_device(wanted)  # so that "cuda" alone, as rewards say, is this one too
    return torch.device("cuda", wanted)


def _why_no_gpu() -> str:
    return "its build has no CUDA" if torch.version.cuda is None else "no driver, or CUDA_VISIBLE_DEVICES hides it"


def shutdown() -> None:
    """Leave the process group, if there is one."""
    watch.stop()
    if dist.is_initialized():
        dist.destroy_process_group()


def leave_at_exit() -> None:
    """Let the group be left when the process ends, unless an error ends it.

    Not at once, for PyTorch cannot join a second group by the same launcher: a script may train twice. Nor after an
    error, since leaving waits for processes that may wait for this one.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if not hasattr(sys, "last_value"):  # set where an uncaught exception was printed
        shutdown()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0
