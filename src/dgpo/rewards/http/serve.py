"""`dgpo serve-reward NAME`: a reward as a server, for clients that name its address (`remote`)."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from PIL import Image

from dgpo.errors import Extra, UserError
from dgpo.rewards.base import needs_group
from dgpo.rewards.http.auth import secret
from dgpo.rewards.registry import resolve


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Options of `dgpo serve-reward`."""

    host: str = "127.0.0.1"
    """The address to listen on: by default only this machine can connect; 0.0.0.0 is all networks."""
    port: int = 8000
    """0: any that is free."""
    token_env: str | None = None
    """An environment variable with the token that clients must show; None: none is asked for."""
    no_token: bool = False
    """Serve other machines without a token: whoever reaches the address can use this one's memory and processor."""
    max_images: int = 128
    """In one request, and in one call of the reward."""
    max_mb: float = 128
    """Of one request, in MB."""
    max_pixels: int = 4096 * 4096
    """Of one image."""
    max_total_pixels: int = 2**25
    """Of all images of one request, and of one call of the reward; as many need 400 MB."""
    max_memory_mb: float = 8000
    """MB that all requests hold together; beyond, clients are told to come back later."""
    max_waiting: int = 1024
    """Images that wait or are being scored; from so many on, clients are told to come back later."""
    batch_ms: float = 5
    """Milliseconds that a request waits for others to be scored together with."""

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
        if self.token_env is None and not self.no_token and not _is_this_machine(self.host):
            raise UserError(
                f"host={self.host} lets others than this machine in, and no token is asked of them. Give "
                "--token-env VARIABLE, an environment variable that holds a token here and with every client; or "
                "--no-token, if whoever reaches the address may use it"
            )
        if self.token_env is not None and self.no_token:
            raise UserError(f"token_env={self.token_env} asks for a token and no_token for none; give one of them")


def _is_this_machine(host: str) -> bool:
    """Whether only this machine can connect to an address. Other names than localhost are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(name: str, options: Serving) -> None:
    """Serve the reward of this name until the process is told to end; what clients wait for is finished first."""
    with Extra("serve", "dgpo serve-reward"):
        import uvicorn

        from dgpo.rewards.http.server import Server
    token = secret(options.token_env)
    reward = resolve(name)
    if needs_group(reward):
        raise UserError(
            f"{name} compares the images of a prompt, and a server does not know which belong together; name it in "
            "the run's own rewards"
        )
    app = Server(name, reward, options, token).app()
    with _listen(options) as listener:
        host, port = listener.getsockname()[:2]
        print(f"Serving {name} on http://{f'[{host}]' if ':' in host else host}:{port}. Ctrl-C ends it.", flush=True)
        if options.no_token and not _is_this_machine(options.host):
            print("Anybody who reaches this address can use it: no token is asked for (--no-token)", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=60)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(options: Serving) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"cannot listen on {options.host} port {options.port}: {error}; take another --port") from error
