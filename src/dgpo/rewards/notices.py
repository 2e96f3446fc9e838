"""What rewards tell while a run waits for them."""

from __future__ import annotations

import sys


def notice(text: str) -> None:
    """A line for whoever watches; above the live line of a terminal. Rewards work in threads and on every process."""
    print(f"  {text}", file=sys.stderr, flush=True)
