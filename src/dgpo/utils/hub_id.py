"""How repositories of the Hugging Face hub are named."""

from __future__ import annotations

import re


def is_hub_id(text: str) -> bool:
    """Whether it has the form owner/name. Asks nobody on the network, nor the disk."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) is not None
