"""The server's side of the protocol in `wire`: refuses what is no request, answers what is, and never invents a score.

Starlette routes, uvicorn serves (`serve`), `batcher` scores. Limits are checked before the work that they limit: the
token before the body is read, its length before it is unpacked, the number and the size of its pictures, as their
headers give them, before the first is decompressed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from dgpo import __version__
from dgpo.errors import Extra, UserError
from dgpo.rewards.base import Reward, RewardAway, RewardError, call_reward
from dgpo.rewards.http import wire
from dgpo.rewards.http.batcher import Batcher, Full, Room
from dgpo.rewards.http.options import Serving
from dgpo.rewards.rows import can_check, verdicts

with Extra("serve", "a server of rewards"):
    import msgspec
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route

RETRY_AFTER = "1"  # seconds
LOG = logging.getLogger("uvicorn.error")
T = TypeVar("T")
_decode_request = msgspec.msgpack.Decoder(wire.Request).decode
_decode_rows = msgspec.msgpack.Decoder(wire.Rows).decode


class Refused(Exception):
    """A request that gets no scores, with the code that `wire` lists for the reason."""

    def __init__(self, code: int, problem: str, index: int | None = None) -> None:
        super().__init__(problem)
        self.code, self.index = code, index


class Asked(NamedTuple):
    """A request that is in order."""

    name: str
    images: Tensor  # (n, 3, H, W) fp32 in [0, 1]
    prompts: list[str]
    metadata: list[dict[str, Any]]


class Server:
    """One reward. token: what clients must show, None for nothing."""

    def __init__(self, name: str, reward: Reward, options: Serving, token: str | None) -> None:
        self._name, self._reward, self._options, self._token = name, reward, options, token
        self._max_bytes = int(options.max_mb * 1_000_000)
        self._room = Room(int(options.max_memory_mb * 1_000_000))
        batches = options.max_images, options.max_total_pixels, options.max_waiting, options.batch_ms / 1000
        self._batcher = Batcher(self._score, *batches)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/version", self._version),
            Route("/score", self._answer, methods=["POST"]),
            Route("/check", self._check, methods=["POST"]),
        ]
        handlers = {Refused: _problem, HTTPException: _problem, Exception: _crash}
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(self._batcher.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    async def _health(self, _: Request) -> Response:
        return _json({"status": "ok", "waiting": self._batcher.waiting})

    async def _version(self, request: Request) -> Response:
        self._authorize(request)
        needed: list[str] = list(getattr(self._reward, "required_metadata", ()))
        limits = self._options.max_images, self._max_bytes, self._options.max_total_pixels
        side, checks = getattr(self._reward, "image_side", None), can_check(self._reward)
        return _json(wire.Version(wire.PROTOCOL, __version__, self._name, needed, *limits, side, checks))

    async def _check(self, request: Request) -> Response:
        self._authorize(request)
        try:
            with self._room.share() as take:
                rows = await run_in_threadpool(_rows, await self._body(request, take))
                found = await self._batcher.between(verdicts, self._reward, *rows)
        except Full as error:
            raise Refused(503, str(error)) from None
        except UserError as error:
            LOG.error("%s", error)
            raise Refused(500, str(error)) from error
        refused = {row: _sendable(verdict) for row, verdict in enumerate(found) if isinstance(verdict, UserError)}
        doubts = {row: _sendable(verdict) for row, verdict in enumerate(found) if isinstance(verdict, str)}
        answer = wire.Checked(wire.PROTOCOL, refused, doubts)
        return Response(msgspec.msgpack.encode(answer), media_type="application/msgpack")

    async def _answer(self, request: Request) -> Response:
        self._authorize(request)
        try:
            self._batcher.require_room()
            with self._room.share() as take:
                asked = await self._asked(request, take)
                scores = await _while_connected(request, self._batcher(asked.images, asked.prompts, asked.metadata))
        except Full as error:
            raise Refused(503, str(error)) from None
        except UserError as error:
            raise Refused(422, str(error)) from error
        except RewardError as error:
            LOG.error("%s", error)
            code = 502 if isinstance(error, RewardAway) else 500
            raise Refused(code, f"the reward {self._name!r} {error.problem}", error.index) from error
        own = [wire.Scores(key.removeprefix(f"{self._name}/"), values.tolist()) for key, values in scores.items()]
        answer = wire.Answer(wire.PROTOCOL, asked.name, self._name, own)
        return Response(msgspec.msgpack.encode(answer), media_type="application/msgpack")

    def _authorize(self, request: Request) -> None:
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._token is not None and not secrets.compare_digest(shown.encode(), self._token.encode()):
            raise Refused(401, "the token is missing or wrong")

    async def _asked(self, request: Request, take: Callable[[int], None]) -> Asked:
        """What is asked for. Its pictures are taken room for, and meanwhile the bytes that they came in as."""
        with self._room.share() as take_meanwhile:
            sent = await run_in_threadpool(_read, await self._body(request, take_meanwhile), _decode_request)
            take(12 * self._shape(sent).pixels)
            return await run_in_threadpool(self._unpack, sent)

    async def _body(self, request: Request, take: Callable[[int], None]) -> bytearray:
        """Read while it is within the limit, whatever its header says."""
        too_large = Refused(413, f"a request may have {self._max_bytes} bytes; send fewer images at a time")
        length = request.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._max_bytes:
            raise too_large
        body = bytearray()
        try:
            async for part in request.stream():
                if len(body) + len(part) > self._max_bytes:
                    raise too_large
                take(len(part))
                body += part
        except ClientDisconnect:
            raise Refused(408, "the client has gone") from None
        return body

    def _shape(self, sent: wire.Request) -> wire.Shape:
        """Of the images, which have as many prompts and metadata and are within the limits."""
        images = len(sent.images.files) if isinstance(sent.images, wire.Png) else sent.images.shape[0]
        most = max(images, len(sent.prompts), len(sent.metadata))
        if most > self._options.max_images:
            raise Refused(413, f"{most} images in a request, and {self._options.max_images} are allowed")
        try:
            shape = wire.read_shape(sent.images)
        except wire.BadImages as error:
            raise Refused(422, str(error), error.index) from None
        for pixels, limit, what in (
            (shape.height * shape.width, self._options.max_pixels, "an image"),
            (shape.pixels, self._options.max_total_pixels, f"a request of {images} images"),
        ):
            if pixels > limit:
                raise Refused(413, f"{what} of {shape.width}x{shape.height} pixels has more than {limit} pixels")
        if not images == len(sent.prompts) == len(sent.metadata):
            counts = f"{images} images, {len(sent.prompts)} prompts, {len(sent.metadata)} metadata"
            raise Refused(400, f"{counts}; there must be as many of each")
        return shape

    def _unpack(self, sent: wire.Request) -> Asked:
        metadata = _metadata(sent.metadata)
        try:
            images = wire.unpack_images(sent.images, self._options.max_pixels)
        except wire.BadImages as error:
            raise Refused(422, str(error), error.index) from None
        return Asked(sent.id, images, sent.prompts, metadata)

    def _score(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> dict[str, Tensor]:
        return call_reward(self._name, self._reward, images, prompts, metadata)


async def _while_connected(request: Request, call: Coroutine[Any, Any, T]) -> T:
    """The result of `call`, which is dropped when its client goes away: one that had to wait too long asks again."""
    answer, gone = asyncio.create_task(call), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise Refused(408, "the client has gone")
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


def _read(body: bytearray, decode: Callable[[bytearray], T]) -> T:
    try:
        return decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _no_request(error) from None


def _rows(body: bytearray) -> tuple[list[str], list[dict[str, Any]]]:
    """The prompts that are to be checked, and the metadata of each."""
    sent = _read(body, _decode_rows)
    metadata = _metadata(sent.metadata)
    if len(sent.prompts) != len(metadata):
        raise Refused(400, f"{len(sent.prompts)} prompts, {len(metadata)} metadata; there must be as many of each")
    return sent.prompts, metadata


def _metadata(texts: list[str]) -> list[dict[str, Any]]:
    """The JSON objects that they are."""
    try:
        metadata = [json.loads(text) for text in texts]
    except (ValueError, RecursionError) as error:
        raise _no_request(error) from None
    odd = next((i for i, row in enumerate(metadata) if not isinstance(row, dict)), None)
    if odd is not None:
        raise Refused(400, "metadata must be JSON objects", odd)
    return metadata


def _no_request(error: Exception) -> Refused:
    problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return Refused(400, f"this is no request of protocol {wire.PROTOCOL}: {problem}")


async def _crash(_: Request, error: Exception) -> Response:
    """A mistake of the server's own, whose traceback is in its log."""
    return _json(wire.Problem(f"the server failed ({type(error).__name__}); its log tells more"), 500)


async def _problem(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # a path or a method that there is not
        return _json(wire.Problem(error.detail), error.status_code)
    assert isinstance(error, Refused)
    headers = {"Retry-After": RETRY_AFTER} if error.code == 503 else {}
    return _json(wire.Problem(_sendable(error), error.index), error.code, headers)


def _sendable(message: object) -> str:
    """Its text, where half of a UTF-16 pair is spelled out."""
    return str(message).encode(errors="backslashreplace").decode()


def _json(value: Any, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), code, headers, media_type="application/json")
