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
