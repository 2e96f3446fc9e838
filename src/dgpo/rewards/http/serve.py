"""`dgpo serve-reward NAME`: a reward as a server, for clients that name its address (`remote`)."""

from __future__ import annotations

import socket
from contextlib import suppress

from dgpo.errors import Extra, UserError
from dgpo.rewards.base import needs_group
from dgpo.rewards.http.auth import secret
from dgpo.rewards.http.options import Serving, is_this_machine
from dgpo.rewards.registry import resolve


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
        if options.no_token and not is_this_machine(options.host):
            print("Anybody who reaches this address can use it: no token is asked for (--no-token)", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=60)
        with suppress(KeyboardInterrupt):  # uvicorn has finished what clients wait for, and raises the signal again
            uvicorn.Server(config).run(sockets=[listener])


def _listen(options: Serving) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"cannot listen on {options.host} port {options.port}: {error}; take another --port") from error
