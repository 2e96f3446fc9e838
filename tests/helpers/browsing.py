"""The studio in a thread, for a real browser."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from dgpo.studio.app import app
from dgpo.studio.serve import server

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WAIT = 20_000  # milliseconds; a shared machine may be slow
BROKEN = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")


class Server:
    """The studio in a thread, which can be ended and started anew on the same port."""

    def __init__(self, folder: Path, token: str = "token", open: bool = True) -> None:
        self._app = lambda token: app(folder, token, open=open)
        self._listen(0, token)

    def _listen(self, port: int, token: str) -> None:
        listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._server = server(self._app(token))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)

    def restart(self) -> None:
        """It has another token, as every studio."""
        self._listen(self.port, "another")
