"""Real HTTP servers for tests, on free ports of this machine: they answer as told, or serve a reward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import uvicorn

from dgpo.rewards.base import Reward
from dgpo.rewards.http.options import Serving
from dgpo.rewards.http.serve import _listen
from dgpo.rewards.http.server import Server


class Asked(NamedTuple):
    path: str
    headers: Mapping[str, str]
    body: bytes


class Reply(NamedTuple):
    body: bytes
    code: int = 200
    headers: Mapping[str, str] = {}


class _HTTPServer(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no news."""


@contextmanager
def answering(answer: Callable[[Asked], Reply]) -> Iterator[str]:
    """The address of a server that gives these answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = answer(Asked(self.path, self.headers, body))
            self.send_response(reply.code)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = _HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving(reward: Reward, name: str = "mine", token: str | None = None, **options: float) -> Iterator[str]:
    """The address of `dgpo serve-reward`, run in a thread."""
    limits = Serving(port=0, **options)  # pyright: ignore[reportArgumentType]
    with _listen(limits) as listener:
        config = uvicorn.Config(Server(name, reward, limits, token).app(), log_level="critical")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
