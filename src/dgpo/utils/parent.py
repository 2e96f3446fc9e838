"""A process that ends with the one that started it, however that ends: its standard input is a pipe from there."""

from __future__ import annotations

import os
import signal
import threading


def end_with_parent(number: signal.Signals) -> None:
    """Send this process a signal once the process that holds the other end of the standard input is gone."""

    def follow() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), number)

    threading.Thread(target=follow, daemon=True).start()
