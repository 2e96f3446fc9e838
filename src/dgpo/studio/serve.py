"""`dgpo studio`: listen, say where, open a browser."""

from __future__ import annotations

import errno
import secrets
import socket
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dgpo.errors import Extra, UserError
from dgpo.rewards.http.options import is_this_machine
from dgpo.studio.options import Options

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

TRIED = 50
"""Ports after the first one that are tried where it is taken."""


def serve(folder: Path, options: Options, page: str = "", said: str = "") -> None:
    """Show the runs in a folder until the process is told to end.

    page: the address, without the first slash, that is opened; said: what is printed, with LINK for it
    """
    with Extra("studio", "dgpo studio"):
        from dgpo.studio.app import app
    require_folder(folder)
    token = secrets.token_urlsafe(16)
    with listen(options) as listener:
        link = link_to(listener, options.host, token, page)
        about = said or f"The runs in {folder}: LINK\nCtrl-C ends the studio; runs go on without it."
        print(about.replace("LINK", link), flush=True)
        if not options.no_browser:
            threading.Thread(target=webbrowser.open, args=[link], daemon=True).start()
        served = app(folder, token, open=is_this_machine(options.host))
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
            server(served).run(sockets=[listener])


def server(app: Starlette) -> uvicorn.Server:
    """A server that lets go, when it ends, of those who wait for events. It logs no address, which may have a token."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.closing.set()
            await super().shutdown(sockets)

    return Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))


def require_folder(folder: Path) -> None:
    """Refuse what is no folder; one without runs is shown as it is, for a run may come."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}. Name the folder that holds your runs: dgpo studio FOLDER; the first "
            "run makes one: dgpo train tiny"
        )


def listen(options: Options) -> socket.socket:
    """Listen on the port, or on the next free one, and say so."""
    ports = range(options.port, min(options.port + TRIED, 65535) + 1) if options.port else [0]
    for port in ports:
        try:
            listener = _listen(options.host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno == errno.EACCES:
                raise UserError(f"port {port} may not be listened on: {error}; take another --port") from error
            raise UserError(f"cannot listen on {options.host}: {error}; take another --host") from error
        if port != options.port:
            print(f"Port {options.port} is in use, so this is {port}; --port takes another one.", flush=True)
        return listener
    raise UserError(f"ports {ports[0]} to {ports[-1]} are all in use; take another --port")


def link_to(listener: socket.socket, host: str, token: str, page: str = "") -> str:
    """What to open in a browser."""
    port = listener.getsockname()[1]
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{page}" + ("" if is_this_machine(host) else f"?token={token}")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=256)
