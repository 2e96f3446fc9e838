"""HTTP as rewards use it: calls that run together within bounds, and are tried again while that can help.

httpx2 sends, tenacity repeats with a growing, jittered wait. What another try can mend is `Unavailable`: no connection,
no answer in time, too many requests, a gateway that is down. A server that says when to come back (Retry-After) is
not asked before, but after a minute at most.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar

from dgpo.errors import Extra, UserError
from dgpo.rewards.notices import notice

with Extra("remote", "a reward over HTTP"):
    import anyio
    import httpx2
    import tenacity
    from anyio import sleep
    from anyio.from_thread import start_blocking_portal

CONNECT_TIMEOUT = 10.0  # seconds
LONGEST_PAUSE = 60.0  # seconds
BACKOFF = tenacity.wait_exponential_jitter(initial=0.25, max=30, jitter=0.25)
BUSY = frozenset({408, 429, 502, 503, 504})  # status codes that another try may mend

T = TypeVar("T")


class Unavailable(Exception):
    """No answer now, perhaps later. pause: the seconds that the server asks for.

    nobody: while this request was tried, no other was answered either; so it is not the request's fault
    """

    def __init__(self, problem: str, pause: float | None = None) -> None:
        super().__init__(problem)
        self.pause, self.nobody = pause, True


def run(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Runs a coroutine function to its end. In an event loop of its own: a notebook has one running already."""
    with start_blocking_portal() as portal:
        return portal.call(function, *arguments)


async def together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all calls, in their order. The first that fails cancels the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def client(headers: dict[str, str]) -> httpx2.AsyncClient:
    """Connections without bounds of their own: those who use them bound their calls and their time."""
    timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT)
    limits = httpx2.Limits(max_connections=None)
    return httpx2.AsyncClient(headers=headers, timeout=timeout, limits=limits, verify=_certificates())


class Patience:
    """How long one reward waits for its servers, and that it is told from the first wait on.

    An outage costs its whole wait once: those who have been away for all retries are asked once by every later call,
    until they answer. reward: the name that is told; retries: further tries of a request, while nobody answers.
    """

    def __init__(self, reward: str, retries: int) -> None:
        self.reward, self.retries = reward, retries
        self._answers, self._given_up = 0, False
        self._waiting_since: float | None = None
        self._told = 1  # the highest number of a try that was announced in this outage

    async def answer(self, request: Callable[[], Awaitable[T]]) -> T:
        """What `request` gives, tried again while it raises Unavailable. The last of these tells if nobody answered."""
        before = self._answers

        def enough(state: tenacity.RetryCallState) -> bool:
            hopeless = self._given_up and _asked_pause(state) is None
            return state.attempt_number > (0 if hopeless else self.retries)

        tries = tenacity.AsyncRetrying(
            stop=enough,
            retry=tenacity.retry_if_exception_type(Unavailable),
            wait=_pause,
            sleep=sleep,
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            async for attempt in tries:
                with attempt:
                    answer = await request()
                    self._answered()
                    return answer
        except Unavailable as error:
            error.nobody = self._answers == before
            self._given_up = self._given_up or (error.nobody and error.pause is None)
            raise
        raise AssertionError("tries end with an answer or an error")

    def _tell(self, state: tenacity.RetryCallState) -> None:
        """Once a try, for many requests wait together."""
        self._waiting_since = self._waiting_since or time.monotonic()
        number = state.attempt_number + 1
        if number > self._told and state.outcome and state.next_action:
            self._told = number
            seconds = state.next_action.sleep
            problem = state.outcome.exception()
            notice(f"{self.reward}: {problem}; try {number} of {1 + self.retries} in {seconds:.2g} s")

    def _answered(self) -> None:
        if self._waiting_since is not None:
            seconds = time.monotonic() - self._waiting_since
            notice(f"{self.reward}: is answered again, after {seconds:.2g} s")
        self._answers += 1
        self._given_up, self._waiting_since, self._told = False, None, 1


async def send(
    client: httpx2.AsyncClient, method: str, url: str, timeout: float, busy: Iterable[int] = BUSY, **content: Any
) -> httpx2.Response:
    """The whole answer within `timeout` seconds, whatever its code; Unavailable if none comes or its code is `busy`."""
    try:
        with anyio.fail_after(timeout):
            response = await client.request(method, url, **content)
    except TimeoutError:
        raise Unavailable(f"{url} did not answer within {timeout:g} seconds") from None
    except httpx2.TransportError as error:
        raise Unavailable(f"{url} cannot be reached ({type(error).__name__}: {error})") from error
    if response.status_code in busy:
        raise Unavailable(f"{url} answered {response.status_code}: {excerpt(response)}", _retry_after(response))
    return response


def excerpt(response: httpx2.Response) -> str:
    """What an answer says, in one line that fits a message; without the secret that was sent, should it repeat it."""
    sent = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    text = " ".join((response.text.replace(sent, "***") if sent else response.text).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def checked_url(url: str) -> str:
    """The address without a trailing slash; UserError if it is none, or holds what does not belong into a run's log."""
    try:
        parts = httpx2.URL(url.strip())
    except httpx2.InvalidURL as error:
        raise UserError(f"{url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UserError(f"{url!r} is no address such as http://127.0.0.1:8000")
    if parts.userinfo or parts.query or parts.fragment:
        raise UserError(
            f"the address of {parts.host} must hold no password and nothing behind ? or #, for addresses are written "
            "into a run's config and log; a secret is given in an environment variable"
        )
    return str(parts).rstrip("/")


@cache
def _certificates() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # takes several times as long as a small request


def _asked_pause(state: tenacity.RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome else None
    return error.pause if isinstance(error, Unavailable) else None


def _pause(state: tenacity.RetryCallState) -> float:
    return max(BACKOFF(state), min(_asked_pause(state) or 0.0, LONGEST_PAUSE))


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds, which the header gives as a number or as a date."""
    value = response.headers.get("Retry-After", "")
    if value.strip().isdecimal():
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
