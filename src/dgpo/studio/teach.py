"""People teach a model in the studio. The trainer is another process; both meet in the run folder (dgpo/teach).

    /teach/NAME                             the page
    /teach/NAME/picture/GROUP/PLACE         a picture, as it is shown there
    /api/teach/next?who=NAME                a group to answer; with after=GROUP the one that follows it
    /api/teach/answer                       POST {"group": "12", "who": "ana", "good": [0, 3], "bad": [1]}
    /api/teach/undo                         POST {"who": "ana"}: that person's last answer is taken back
    /api/teach/status                       how far the run is, and what the answers say

Each takes `run`; without it the only run that people teach is meant, or the newest of those in progress.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dgpo.errors import Extra, UserError, did_you_mean
from dgpo.studio.classroom import Classroom, config_of
from dgpo.studio.guard import is_same_origin
from dgpo.studio.handling import body_of, reads_runs
from dgpo.studio.listing import Listing
from dgpo.studio.run import Run, stamp_of
from dgpo.studio.state import RUNNING
from dgpo.teach.picks import require_name

with Extra("studio", "dgpo studio"):
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""For pictures: what they hold is in their address."""
FIELDS = ("group", "who", "run", "good", "bad", "ranks", "same", "skip")


class Teach:
    """What the addresses answer."""

    def __init__(self, listing: Listing, page: Callable[..., Response]) -> None:
        self._listing, self._page = listing, page
        self._classrooms: dict[str, tuple[Any, Classroom]] = {}  # by name of the run: of which folder, and which it is
        self._lock = threading.Lock()

    def routes(self) -> list[Route]:
        """The addresses."""
        return [
            Route("/teach/{name}", self.show),
            Route("/teach/{name}/picture/{group}/{place}", self.picture),
            Route("/api/teach/next", self.next),
            Route("/api/teach/answer", self.answer, methods=["POST"]),
            Route("/api/teach/undo", self.undo, methods=["POST"]),
            Route("/api/teach/status", self.status),
        ]

    @reads_runs
    def show(self, request: Request) -> Response:
        """The page."""
        run = self._listing.run(request.path_params["name"])
        self._classroom(run)
        return self._page("teach.html.j2", run=run, title=run.known().config.get("name") or run.name)

    @reads_runs
    def picture(self, request: Request) -> Response:
        """A picture of a group."""
        asked = request.path_params
        path = self._classroom(self._listing.run(asked["name"])).picture(asked["group"], asked["place"])
        try:
            content = path.read_bytes() if path else None
        except FileNotFoundError:
            content = None
        if content is None:
            raise HTTPException(404, f"group {asked['group']} has no picture {asked['place']} (any more)"[:300])
        return Response(content, media_type="image/png", headers=KEPT)

    @reads_runs
    def next(self, request: Request) -> Response:
        """What a person is asked; 202 with a reason where nothing is drawn yet."""
        if not is_same_origin(request.headers):  # it holds a group for somebody
            raise HTTPException(403, "a page of another site may not ask for groups")
        given = request.query_params
        classroom = self._named(given.get("run"))
        asked = classroom.next(require_name(given.get("who", "")), given.get("after"))
        return JSONResponse(asked) if asked else JSONResponse(classroom.waiting(), 202)

    async def answer(self, request: Request) -> Response:
        """Keep an answer: it is on the disk when this returns."""
        given = await body_of(request)
        for name in given:
            if name not in FIELDS:
                raise UserError(f"an answer has no {name!r}. {did_you_mean(name, FIELDS)}"[:300])
        return JSONResponse(await run_in_threadpool(self._answer, given))

    @staticmethod
    def _person(given: dict[str, Any]) -> str:
        return require_name(given.get("who"))

    def _answer(self, given: dict[str, Any]) -> dict[str, Any]:
        return self._named(given.get("run")).answer(given, self._person(given))

    async def undo(self, request: Request) -> Response:
        """Take back a person's last answer, and ask it again."""
        given = await body_of(request)
        return JSONResponse(await run_in_threadpool(self._undo, given))

    def _undo(self, given: dict[str, Any]) -> dict[str, Any]:
        return self._named(given.get("run")).undo(self._person(given))

    @reads_runs
    def status(self, request: Request) -> Response:
        """How far the run is."""
        return JSONResponse(self._named(request.query_params.get("run")).status())

    def _named(self, name: Any) -> Classroom:
        if not isinstance(name, str | None):
            raise UserError(f"run={name!r} must be the name of a run"[:300])
        return self._classroom(self._listing.run(name) if name else self._usual_run())

    def _usual_run(self) -> Run:
        runs = [run for run in self._listing.all() if run.may_be_taught() and run.is_taught()]
        if not runs:
            raise UserError(f"no run in {self._listing.folder} is taught by people; dgpo teach MODEL starts one")
        going = [run for run in runs if run.state().name == RUNNING] if len(runs) > 1 else runs
        if not going:
            names = ", ".join(run.name for run in runs)
            raise UserError(f"no run is in progress, and people teach several: say which with run: {names}"[:600])
        return max(going, key=lambda run: stamp_of(run.folder / "config.yaml"))

    def _classroom(self, run: Run) -> Classroom:
        """The same one for all who ask, until the run begins anew or has another config."""
        with self._lock:
            inode = run.folder.stat().st_ino
            which = inode, stamp_of(run.folder / "config.yaml")
            known = self._classrooms.get(run.name)
            if known is None or known[0] != which:
                config = config_of(run)
                same = known is not None and known[0][0] == inode and known[1].config == config
                known = which, known[1] if same and known else Classroom(run, config)
                self._classrooms[run.name] = known
            return known[1]
