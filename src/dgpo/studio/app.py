"""The addresses of the studio.

    /                                   the runs
    /run/NAME                           a run: the sections of its report, its console, its failures, buttons
    /run/NAME/live                      what of that page changes while it trains
    /run/NAME/events                    server-sent events: one whenever there is something new
    /run/NAME/samples                   the viewer for samples
    /run/NAME/report                    the report as one file, to send to others
    /compare?run=NAME&run=NAME          runs held against each other
    /api/runs?since=NOW                 the runs as JSON; with `now` of an earlier answer only what has changed
    /api/run/NAME                       one run as JSON
    /api/run/NAME/samples               prompts, evaluations and scores of its pictures
    /api/run/NAME/ask                   POST {"request": "save"}: save, evaluate or stop, after this iteration
    /teach/NAME, /api/teach/            people teach a model (teach.py)

A name in an address is looked up among the runs that there are, and a picture among those of its run; neither is ever
made into a path. Reading happens in threads, so that one long log keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from dgpo import __version__
from dgpo.errors import Extra, UserError, did_you_mean
from dgpo.report import comparison, page
from dgpo.report.marks import marking
from dgpo.report.pictures import embedded, is_tiny, smaller
from dgpo.report.several import read_runs
from dgpo.report.templates import template
from dgpo.run import requests
from dgpo.run.console_log import last_lines
from dgpo.studio.classroom import NoGroup
from dgpo.studio.guard import Guard
from dgpo.studio.handling import reads_runs
from dgpo.studio.listing import Listing, NoRun
from dgpo.studio.run import Run, problem_of
from dgpo.studio.state import RUNNING
from dgpo.studio.teach import Teach
from dgpo.teach.desk import Answered
from dgpo.teach.picks import NotKept

with Extra("studio", "dgpo studio"):
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

LINES = 60
"""Of the console that are shown."""
THUMBNAIL = 96
"""Pixels."""
LOOK, QUIET = 1.0, 15.0
"""Seconds between two looks at a run that somebody watches, and after which silence is broken."""
KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""For what has its time in its address, and so never changes."""


def app(folder: Path, token: str, open: bool) -> Starlette:
    """The ASGI application. token: what changes need; open: whether looking needs none (guard.py)"""
    studio = Studio(folder, token)
    routes = [
        Route("/", studio.front),
        Route("/run/{name}", studio.run),
        Route("/run/{name}/live", studio.live),
        Route("/run/{name}/events", studio.events),
        Route("/run/{name}/samples", studio.viewer),
        Route("/run/{name}/report", studio.report),
        Route("/run/{name}/thumbnail", studio.thumbnail),
        Route("/run/{name}/picture/{iteration}/{number}", studio.picture),
        Route("/run/{name}/failure/{picture}", studio.failure),
        Route("/compare", studio.compare),
        Route("/api/runs", studio.api_runs),
        Route("/api/run/{name}", studio.api_run),
        Route("/api/run/{name}/samples", studio.api_samples),
        Route("/api/run/{name}/ask", studio.api_ask, methods=["POST"]),
        *Teach(studio.listing, studio.page).routes(),
        Route("/static/{name}", static),
    ]
    handlers = {UserError: studio.problem, HTTPException: studio.problem, OSError: studio.problem}
    guard = Middleware(Guard, token=token, open=open)
    made = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)
    made.state.closing = studio.closing
    return made


class Studio:
    """What the addresses answer."""

    def __init__(self, folder: Path, token: str) -> None:
        self.listing, self._token = Listing(folder), token
        self.closing = asyncio.Event()  # once set, whoever is told of events is let go

    def page(self, name: str, code: int = 200, **values: Any) -> Response:
        """A page in the frame that all have."""
        frame = {"token": self._token, "version": __version__, "folder": str(self.listing.folder)}
        return HTMLResponse(template("studio", name).render(frame | values), code)

    def _run(self, request: Request) -> Run:
        return self.listing.run(request.path_params["name"])

    def front(self, request: Request) -> Response:
        return self.page("front.html.j2")

    def run(self, request: Request) -> Response:
        return self._page_of(self._run(request), "run.html.j2")

    def live(self, request: Request) -> Response:
        return self._page_of(self._run(request), "live.html.j2")

    def _page_of(self, run: Run, name: str) -> Response:
        """The page of a run as it is now; of a damaged one, what is wrong with it."""
        try:
            return self.page(name, run=run, **_live(run))
        except Exception as error:
            return self.page(name, run=run, **_unreadable(run, problem_of(error)))

    @reads_runs
    def viewer(self, request: Request) -> Response:
        return self.page("samples.html.j2", run=self._run(request), tiny=_is_tiny)

    @reads_runs
    def report(self, request: Request) -> Response:
        """As a file: what it holds in itself, a browser is not to show under this address."""
        run = self._run(request)
        name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in run.name)
        headers = {"Content-Disposition": f'attachment; filename="{name}-report.html"'}

        def address(path: Path) -> str:
            return embedded(path) if run.holds(path) else ""

        return HTMLResponse(page.render(run.folder, address), headers=headers)

    @reads_runs
    def compare(self, request: Request) -> Response:
        runs = [self.listing.run(name) for name in request.query_params.getlist("run")]
        by_folder = {run.folder: run for run in runs}
        found = read_runs([run.folder for run in runs])

        def address(path: Path) -> str:
            return by_folder[path.parents[2]].picture_address(path)

        return self.page("compare.html.j2", shown=runs, **comparison.contents(found, address))

    @reads_runs
    def picture(self, request: Request) -> Response:
        iteration, number = request.path_params["iteration"], request.path_params["number"]
        path = self._run(request).picture(iteration, number)
        if path is None:
            raise HTTPException(404, f"there is no picture {number} of iteration {iteration}"[:300])
        return FileResponse(path, headers=KEPT)

    @reads_runs
    def thumbnail(self, request: Request) -> Response:
        path = self._run(request).newest_picture()
        if path is None:
            raise HTTPException(404, "the run has no picture yet")
        return Response(_small(path, path.stat().st_mtime_ns), media_type="image/webp", headers=KEPT)

    @reads_runs
    def failure(self, request: Request) -> Response:
        path = self._run(request).failure_pictures().get(request.path_params["picture"])
        if path is None:
            raise HTTPException(404, "there is no such picture")
        return FileResponse(path)

    async def events(self, request: Request) -> Response:
        run = await run_in_threadpool(self._run, request)
        return StreamingResponse(_events(run, self.closing), media_type="text/event-stream")

    def api_runs(self, request: Request) -> Response:
        return JSONResponse(self.listing.changes(request.query_params.get("since", "")))

    def api_run(self, request: Request) -> Response:
        return JSONResponse(self._run(request).describe())

    @reads_runs
    def api_samples(self, request: Request) -> Response:
        return JSONResponse(_samples(self._run(request)))

    async def api_ask(self, request: Request) -> Response:
        asked = _asked(await request.body())
        run = await run_in_threadpool(self._run, request)
        await run_in_threadpool(requests.ask, run.folder, asked)
        return JSONResponse({"asked": asked, "meaning": requests.REQUESTS[asked]}, 202)

    def problem(self, request: Request, error: Exception) -> Response:
        """One message, whatever went wrong."""
        code = error.status_code if isinstance(error, HTTPException) else _code_of(error)
        said = error.detail if isinstance(error, HTTPException) else str(error)
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": said}, code)
        return self.page("problem.html.j2", code, said=said)


def _code_of(error: Exception) -> int:
    codes = {NoRun: 404, NoGroup: 404, Answered: 409, NotKept: 507}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 400)


def _live(run: Run) -> dict[str, Any]:
    """What the page of a run shows, as it is now."""
    stamp = run.stamp()
    about = run.describe()
    config = run.known().config
    return {
        **_report(run),
        "about": about,
        "stamp": _text(run, stamp),
        "plan": plan(config),
        "lines": last_lines(run.folder, LINES),
        "failures": run.failures(),
        "requests": requests.REQUESTS,
        "evaluates": bool(config.get("eval_every") and config.get("eval_prompts")),
        "running": about["state"] == RUNNING,
    }


def _unreadable(run: Run, problem: str) -> dict[str, Any]:
    """The page of a run whose files cannot be shown."""
    nothing = dict.fromkeys(("heading", "pictures", "plan", "lines", "failures", "running"))
    unknown = dict.fromkeys(("model", "algorithm", "iterations", "left", "checkpoint", "note", "teach"), "")
    return {**nothing, "problem": problem, "about": unknown | run.unreadable(problem), "stamp": _text(run)}


def _report(run: Run) -> dict[str, Any]:
    """The sections of a run's report, or the problem because of which there are none."""
    nothing = {"heading": None, "pictures": None, "problem": run.known().problem}
    if run.known().problem:
        return nothing
    try:
        return nothing | page.contents(run.folder, run.picture_address)
    except UserError as error:
        return nothing | {"problem": str(error)}


def plan(config: Mapping[str, Any]) -> str:
    """What the run does, in a line; empty where its config does not say."""
    names = ("iterations", "num_groups", "group_size", "rewards")
    if not all(name in config for name in names):
        return ""
    total, groups, size, rewards = (config[name] for name in names)
    minutes = f" or {config['max_minutes']:g} minutes" if config.get("max_minutes") else ""
    earned = " + ".join(f"{weight:g} {name}" for name, weight in rewards.items()) if isinstance(rewards, dict) else ""
    steps = config.get("updates_per_rollout", 1)
    what = f"{groups} prompts × {size} pictures, {steps} optimizer step{'s' * (steps != 1)}"
    return f"{total} iterations{minutes} of {what}" + (f"; reward {earned}" if earned else "")


async def _events(run: Run, closing: asyncio.Event) -> AsyncIterator[str]:
    """The stamp of a run whenever it is another one; a page that has another one looks again."""
    last, quiet = "", 0.0
    while not closing.is_set():
        now = await run_in_threadpool(_text, run)
        if now != last or quiet >= QUIET:
            yield f"data: {now}\n\n" if now != last else ": nothing new\n\n"
            last, quiet = now, 0.0
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(closing.wait(), LOOK)
        quiet += LOOK


def _text(run: Run, stamp: Any = None) -> str:
    """A run's stamp as a word, with its state, which can change without a file."""
    return f"{hash((stamp or run.stamp(), run.state())):x}"


def _samples(run: Run) -> dict[str, Any]:
    """What the viewer needs: prompts, and of every evaluation each picture's address and mark."""
    samples = run.samples()
    if samples is None:
        return {"prompts": [], "each": 1, "evaluations": []}
    marked_by = marking(samples.scores.values(), run.known().config)
    evaluations = []
    for iteration, paths in samples.iterations.items():
        scores = samples.scores[iteration]
        marks = [marked_by.mark(value).text for value in scores[marked_by.score]] if marked_by else []
        told = {name: [None if math.isnan(v) else v for v in values] for name, values in scores.items()}
        pictures = [run.picture_address(path) for path in paths]
        evaluations.append({"iteration": iteration, "pictures": pictures, "marks": marks, "scores": told})
    return {
        "prompts": samples.prompts[:: samples.images_per_prompt],
        "each": samples.images_per_prompt,
        "tiny": _is_tiny(run),
        "evaluations": evaluations,
    }


def _is_tiny(run: Run) -> bool:
    picture = run.newest_picture()
    return picture is not None and is_tiny(picture)


def _asked(body: bytes) -> str:
    known = f'send {{"request": NAME}} with one of {", ".join(requests.REQUESTS)}'
    try:
        asked = json.loads(body)["request"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"that is no request; {known}") from None
    if not isinstance(asked, str):
        raise UserError(f"that is no request; {known}")
    if asked not in requests.REQUESTS:
        raise UserError(f"there is no request {asked!r}; {known}"[:300])
    return asked


@lru_cache(maxsize=2048)
def _small(path: Path, modified: int) -> bytes:
    """A thumbnail; `modified` tells a picture that was drawn again."""
    return smaller(path, THUMBNAIL)


TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@lru_cache
def _static() -> dict[str, tuple[str, bytes]]:
    """name -> (type, content) of every file that a page loads."""
    ours = [file for file in files("dgpo.studio").joinpath("static").iterdir() if file.name.rpartition(".")[2] in TYPES]
    look = files("dgpo.report").joinpath("look.css")
    return {file.name: (TYPES[file.name.rpartition(".")[2]], file.read_bytes()) for file in [*ours, look]}


def static(request: Request) -> Response:
    """A script, a style or a drawing of the package."""
    name = request.path_params["name"]
    if name not in _static():
        raise HTTPException(404, f"there is no file {name!r}. {did_you_mean(name, _static())}")
    kind, content = _static()[name]
    return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})
