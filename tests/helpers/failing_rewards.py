"""Rewards that fail, for commands that import them by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dgpo.errors import UserError


def exiting(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> None:
    raise SystemExit(0)


def misconfigured(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> None:
    raise UserError("a setting is wrong")
