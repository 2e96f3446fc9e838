"""What the handlers of requests share: damaged files become one message, and a body that is no JSON does too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from dgpo.errors import Extra, UserError
from dgpo.studio.run import problem_of
from dgpo.utils.files import json_object

with Extra("studio", "dgpo studio"):
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response

Self = TypeVar("Self")
LARGEST = 1 << 16
"""Bytes of a body."""


def reads_runs(answer: Callable[[Self, Request], Response]) -> Callable[[Self, Request], Response]:
    """What the files of a damaged run raise becomes one message."""

    @wraps(answer)
    def guarded(self: Self, request: Request) -> Response:
        try:
            return answer(self, request)
        except (UserError, OSError, HTTPException):
            raise
        except Exception as error:
            raise UserError(problem_of(error)) from error

    return guarded


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object that was sent."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise HTTPException(413, f"the body has more than {LARGEST} bytes; an answer has a few hundred")
    return json_object(body.decode("utf-8", errors="replace"), "the body", "an object in braces, such as {}")
