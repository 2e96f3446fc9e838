"""What a call costs on this machine, to be compared with what another one costs on it."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable


def seconds(call: Callable[[], object], times: int = 5) -> float:
    """Processor time of this thread alone, the least of some calls, without garbage collection.

    A shared machine may be ten times slower than another, and now and then than itself. So no test has a limit in
    seconds: it compares two calls.
    """
    return min(timeit.repeat(call, timer=time.thread_time, number=1, repeat=times))


def ratio(one: Callable[[], object], other: Callable[[], object], times: int = 7) -> float:
    """What one call takes of the other, the two in turn, so that a machine that slows down meanwhile slows both."""
    pairs = [(seconds(one, 1), seconds(other, 1)) for _ in range(times)]
    return min(first for first, _ in pairs) / min(second for _, second in pairs)
