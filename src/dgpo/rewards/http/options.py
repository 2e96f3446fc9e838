"""What a server of rewards is told: its address, its limits, and whom it lets in."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from PIL import Image

from dgpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Options of `dgpo serve-reward`."""

    host: str = "127.0.0.1"
    """The address to listen on: by default only this machine can connect; 0.0.0.0 is all networks."""
    port: int = 8000
    """The port to listen on; 0: any that is free."""
    token_env: str | None = None
    """An environment variable with the token that clients must show; None: none is asked for."""
    no_token: bool = False
    """Serve other machines without a token: whoever reaches the address can use this one's memory and processor."""
    max_images: int = 128
    """Most images of one request, and of one call of the reward."""
    max_mb: float = 128
    """Largest request, in MB."""
    max_pixels: int = 4096 * 4096
    """Largest image, in pixels."""
    max_total_pixels: int = 2**25
    """Most pixels of one request's images together, and of one call of the reward; as many need 400 MB."""
    max_memory_mb: float = 8000
    """Most memory that all requests hold together, in MB; beyond, clients are told to come back later."""
    max_waiting: int = 1024
    """Most images that wait or are being scored; from so many on, clients are told to come back later."""
    batch_ms: float = 5
    """How long a request waits for others to be scored together with it, in milliseconds."""

    def __post_init__(self) -> None:
        least = {"port": 0, "max_images": 1, "max_pixels": 1, "max_total_pixels": 1, "max_waiting": 1, "batch_ms": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"{name}={getattr(self, name)} cannot work: it must be at least {bound}")
        if self.port > 65535 or self.max_mb <= 0:
            raise UserError(f"port={self.port} must be at most 65535 and max_mb={self.max_mb} above 0")
        if self.max_pixels > (most := Image.MAX_IMAGE_PIXELS or self.max_pixels):
            raise UserError(f"max_pixels={self.max_pixels} cannot work: Pillow reads no picture of more than {most}")
        if self.max_memory_mb < (needed := self.max_mb + 12 * self.max_total_pixels / 1_000_000):
            raise UserError(
                f"max_memory_mb={self.max_memory_mb:g} cannot work: one request of max_mb={self.max_mb:g} and "
                f"max_total_pixels={self.max_total_pixels} needs {needed:.0f}"
            )
        if self.token_env is None and not self.no_token and not is_this_machine(self.host):
            raise UserError(
                f"host={self.host} lets others than this machine in, and no token is asked of them. Give "
                "--token-env VARIABLE, an environment variable that holds a token here and with every client; or "
                "--no-token, if whoever reaches the address may use it"
            )
        if self.token_env is not None and self.no_token:
            raise UserError(f"token_env={self.token_env} asks for a token and no_token for none; give one of them")


def is_this_machine(host: str) -> bool:
    """Whether only this machine can connect to an address. Other names than localhost are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
