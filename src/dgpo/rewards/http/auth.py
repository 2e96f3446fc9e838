"""Secrets of rewards that talk to others: environment variables hold them, no config and no command line."""

from __future__ import annotations

import os

from dgpo.errors import UserError


def secret(variable: str | None, default: str | None = None) -> str | None:
    """What an environment variable holds, which must be set; without a name, what `default` holds, if it is set."""
    name = variable or default
    value = os.environ.get(name, "").strip() if name else ""
    if variable and not value:
        raise UserError(f"the environment variable {variable} is to hold a secret, and it is not set")
    if not (value.isascii() and value.isprintable()):
        raise UserError(f"the environment variable {name} has characters that no HTTP header can hold")
    return value or None


def bearer(value: str | None) -> dict[str, str]:
    """The header that shows a secret to a server."""
    return {"Authorization": f"Bearer {value}"} if value else {}
