"""How repositories of the Hugging Face hub are named."""

from __future__ import annotations

import re

RUNS = "runs"
"""The folder of the runs whose place is not given."""


def is_hub_id(text: str) -> bool:
    """Whether it has the form owner/name, and is not called as a run is. Asks nobody on the network, nor the disk."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) is not None and not text.startswith(f"{RUNS}/")
