"""How work that takes a while says how far it is: by the name of its phase, what is done, and how much there is."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[str, int, int], None]
"""Hears (phase, done, total). A total of 0: nothing is counted."""

UNITS = {
    "loading": "",
    "encoding": "prompts",
    "evaluating": "images",
    "reporting": "",
    "sampling": "images",
    "reading": "images",
    "scoring": "",
    "updating": "backward passes",
    "saving": "",
}
"""The phases of a run, or of a command that draws, and what is counted in them."""


def silent(phase: str, done: int, total: int) -> None:
    """Tell nobody."""
