"""What the studio is told: its address, and whether it opens a browser."""

from __future__ import annotations

from dataclasses import dataclass

from dgpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `dgpo studio`."""

    host: str = "127.0.0.1"
    """The address to listen on: by default only this machine can connect. For any other, a token is asked for, which
    the printed link contains; 0.0.0.0 is all networks."""
    port: int = 8300
    """The port to listen on; the next free one if it is taken; 0: any that is free."""
    no_browser: bool = False
    """Only print the link, and open no browser."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"port={self.port} cannot work: it must be from 0 to 65535")
