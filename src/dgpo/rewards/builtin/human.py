"""A person as a reward. A run that has it waits for answers (training/taught.py) and never calls this."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dgpo.errors import UserError


def human(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """Refuse: a person is asked while a model trains, and nowhere else."""
    raise UserError(
        "the reward human is a person who is asked while a model trains: dgpo teach MODEL, or dgpo train FILE "
        "--rewards human=1. It cannot score pictures that are there already; let a person sort them, and learn from "
        "the ranks: dgpo train --offline (docs/offline.md)"
    )
