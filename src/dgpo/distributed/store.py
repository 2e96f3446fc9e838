"""The store in which the processes of a run find each other, and the name of their part of it.

torchrun keeps one store over all its restarts, and with it the addresses of processes that have died: a process that
comes early would try to reach those. So the living first agree on a name that nobody has had.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

PAUSE = 0.05
"""Seconds between two looks; a signal is heard between them, and not inside of a wait of the store."""


def connected(seconds: float, host: bool = False) -> dist.TCPStore:
    """The launcher's store. host: where the launcher has none, make it in this process."""
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=seconds)
    return dist.TCPStore(
        address, port, is_master=host and not by_launcher, timeout=limit, wait_for_workers=False, multi_tenant=True
    )


def agreed_name(store: dist.Store, rank: int, world_size: int, seconds: float) -> str:
    """A new name, the same for all living processes; DistStoreError says which rank has not come in time."""
    own, until = uuid.uuid4().hex, time.monotonic() + seconds
    if rank:
        store.set(f"dgpo/hello/{rank}", own)
        _await(store, f"dgpo/answer/{own}", "rank 0", until)
        name = store.get(f"dgpo/answer/{own}").decode()
        store.set(f"dgpo/heard/{name}/{rank}", "")
        return name
    for other in range(1, world_size):
        # what stands there may be a dead one's until the living one has written
        while not store.check([f"dgpo/heard/{own}/{other}"]):
            if store.check([f"dgpo/hello/{other}"]):
                store.set(f"dgpo/answer/{store.get(f'dgpo/hello/{other}').decode()}", own)
            _pause(f"rank {other}", until)
    return own


def _await(store: dist.Store, key: str, whom: str, until: float) -> None:
    while not store.check([key]):
        _pause(whom, until)


def _pause(whom: str, until: float) -> None:
    if time.monotonic() > until:
        raise dist.DistStoreError(f"{whom} has not come in time")
    time.sleep(PAUSE)
