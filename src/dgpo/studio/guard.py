"""Who may ask what: in front of every address of the studio.

- On loopback anybody on this machine may look. The name in the request must be one of this machine, or a page of
  another site could read through a name of its own that it lets point here.
- On another address everybody needs the token: from the printed link, after which a cookie has it, or as a bearer.
- What changes something needs the token in a header and must come from a page of the studio itself (or from no page).
  The studio's pages hold the token.
- On loopback a script needs no token. A request counts as a script's if it is JSON and has no Origin, Referer or
  Sec-Fetch header: browsers send an Origin with every POST, and a page cannot keep them from it. Scripts of this
  machine could read the token from a page: it keeps out pages of other sites. A token that is sent has to be right.
- No page may load anything from elsewhere, nor run what stands in its own text: a strict Content-Security-Policy.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlencode, urlsplit

from dgpo.errors import Extra
from dgpo.rewards.http.options import is_this_machine

with Extra("studio", "dgpo studio"):
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
READING = ("GET", "HEAD")
TOKEN_HEADER = "X-Dgpo-Token"


class Guard:
    """ASGI middleware. open: whether looking needs no token, as on loopback."""

    def __init__(self, app: ASGIApp, token: str, open: bool) -> None:
        self._app, self._token, self._open = app, token, open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        answer = self._from_link(request) or self._refusal(request)
        await (answer or self._app)(scope, receive, guarded)

    def _from_link(self, request: Request) -> Response | None:
        """Whoever comes with the printed link gets a cookie, and an address without the token."""
        if self._open or request.method not in READING or not self._is_token(request.query_params.get("token", "")):
            return None
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
        path = "/" + request.url.path.lstrip("/")  # //elsewhere would lead there
        answer = RedirectResponse(path + (f"?{urlencode(rest)}" if rest else ""), 303)
        answer.set_cookie(_cookie(request), self._token, httponly=True, samesite="strict")
        return answer

    def _refusal(self, request: Request) -> Response | None:
        headers, reading = request.headers, request.method in READING
        if self._open and not is_this_machine(_host_name(headers)):
            return _refuse(request, 403, "this studio is for its own machine only: open it as 127.0.0.1 or localhost")
        if not self._open and not self._shows_token(request):
            given = "token" in request.query_params
            what = "the token in this link is wrong" if given else "a token is needed"
            return _refuse(request, 401, f"{what}: open the whole link that dgpo studio has printed")
        if not reading and not is_same_origin(headers):
            return _refuse(request, 403, "only a page of this studio may change something")
        if not reading and self._open and _is_script(headers):
            return None
        if not reading and not (self._is_token(headers.get(TOKEN_HEADER, "")) or self._is_token(_bearer(headers))):
            script = (
                "; a script of this machine needs none if it sends JSON with its Content-Type" if self._open else ""
            )
            return _refuse(
                request, 403, f"the token is missing or wrong: reload the page, or send {TOKEN_HEADER}{script}"
            )
        return None

    def _shows_token(self, request: Request) -> bool:
        return self._is_token(request.cookies.get(_cookie(request), "")) or self._is_token(_bearer(request.headers))

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(errors="replace"), self._token.encode())


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of this address, or from no page."""
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "none")
    return site in ("same-origin", "none") and (origin is None or urlsplit(origin).netloc == headers.get("Host"))


def _is_script(headers: Headers) -> bool:
    """Whether a request comes from no web page, and brings no token."""
    of_pages = any(name in ("origin", "referer") or name.startswith("sec-fetch-") for name in headers)
    is_json = headers.get("Content-Type", "").partition(";")[0].strip().lower() == "application/json"
    return is_json and not of_pages and TOKEN_HEADER not in headers and "Authorization" not in headers


def _host_name(headers: Headers) -> str:
    try:
        return urlsplit(f"//{headers.get('Host', '')}").hostname or ""
    except ValueError:
        return ""


def _bearer(headers: Headers) -> str:
    return headers.get("Authorization", "").removeprefix("Bearer ")


def _cookie(request: Request) -> str:
    """Its own for every port, which cookies do not tell apart."""
    return f"dgpo-studio-{request.url.port or 80}"


def _refuse(request: Request, code: int, problem: str) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": problem}, code)
    return PlainTextResponse(f"dgpo studio: {problem}\n", code)
