"""A pool of servers that can do the same work: each request is answered once, by whichever can.

A request goes to the least busy server. One that fails rests for a while, longer each time, and the request goes to the
next; when all have failed, the request waits and begins again. No server has more than `in_flight` requests at once,
and no more requests are prepared than the pool can take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dgpo.errors import Extra
from dgpo.rewards.http import calls
from dgpo.rewards.http.calls import Unavailable

with Extra("remote", "a remote reward"):
    import httpx2

LONGEST_REST = 30.0  # seconds


class Pool:
    """timeout: seconds for one request; retries: further rounds over the servers while none of them answers."""

    def __init__(
        self, urls: Sequence[str], headers: dict[str, str], timeout: float, retries: int, in_flight: int
    ) -> None:
        self.headers, self.timeout, self.in_flight = headers, timeout, in_flight
        self.servers = [_Server(url) for url in dict.fromkeys(map(calls.checked_url, urls))]
        self.patience = calls.Patience("reward", retries)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Connections for requests of one event loop."""
        async with calls.client(self.headers) as client:
            yield Session(self, client)


class Session:
    """What is sent through it shares the bounds of the pool."""

    def __init__(self, pool: Pool, client: httpx2.AsyncClient) -> None:
        self._pool, self._client = pool, client
        self._lanes = [_Lane(server, asyncio.Semaphore(pool.in_flight)) for server in pool.servers]
        self._capacity = asyncio.Semaphore(pool.in_flight * len(pool.servers))

    async def get_each(self, path: str) -> list[httpx2.Response | Unavailable]:
        """What every server answers, without a second try."""

        async def get(url: str) -> httpx2.Response | Unavailable:
            try:
                timeout = min(self._pool.timeout, calls.CONNECT_TIMEOUT)
                return await calls.send(self._client, "GET", f"{url}{path}", timeout)
            except Unavailable as problem:
                return problem

        return await calls.together(get(server.url) for server in self._pool.servers)

    async def post(self, path: str, body: Callable[[], bytes]) -> httpx2.Response:
        """The first answer of any server, whatever its code; Unavailable if there is none after all retries."""
        async with self._capacity:
            content = body()
            return await self._pool.patience.answer(lambda: self._round(path, content))

    async def _round(self, path: str, content: bytes) -> httpx2.Response:
        problems: list[Unavailable] = []
        for lane in sorted(self._lanes, key=_Lane.reluctance):
            try:
                async with lane.taken():
                    url = f"{lane.server.url}{path}"
                    response = await calls.send(self._client, "POST", url, self._pool.timeout, content=content)
                lane.server.failures = 0
                return response
            except Unavailable as problem:
                lane.server.rest(problem.pause)
                problems.append(problem)
        pauses = [problem.pause for problem in problems if problem.pause is not None]
        pause = min(pauses) if len(pauses) == len(problems) else None
        raise Unavailable("; ".join(dict.fromkeys(map(str, problems))), pause)


@dataclass
class _Server:
    url: str
    failures: int = 0
    """In a row."""
    rest_until: float = 0.0
    """By the clock of `time.monotonic`."""

    def rest(self, pause: float | None) -> None:
        """Be asked last for some seconds: those that the server wants, or twice as many after each failure in a row."""
        now = time.monotonic()
        if now < self.rest_until:
            return  # requests that were on their way together fail together: that is one failure
        self.failures += 1
        seconds = 2.0 ** min(self.failures, 10) if pause is None else pause
        self.rest_until = now + min(seconds, LONGEST_REST)


@dataclass
class _Lane:
    """A server in one session."""

    server: _Server
    slots: asyncio.Semaphore
    load: int = field(default=0)
    """Requests that it has, or that wait for it."""

    def reluctance(self) -> tuple[bool, int]:
        return self.server.rest_until > time.monotonic(), self.load

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        self.load += 1
        try:
            async with self.slots:
                yield
        finally:
            self.load -= 1
