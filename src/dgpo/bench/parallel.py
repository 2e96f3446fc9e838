"""Several runs of the benchmark at once, each a process of its own, on one GPU or on the cores of a CPU.

Contenders go on side by side: while one waits for the last rates of its search, the others use its slots. Runs that are
compared start before those of searches, so that contenders become whole one after the other. A run that fails is named
and stops nothing but what needs it. A signal asks all runs to stop and save after their iteration; a second Ctrl-C
stops them at once. What has its result keeps it, and the same call continues the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from dgpo.bench.plan import Plan
from dgpo.bench.run import Job, has_result, result_path, stages
from dgpo.errors import UserError
from dgpo.report.words import duration
from dgpo.run.interrupt import Interrupt
from dgpo.utils.devices import cores

PAUSE = 0.2  # seconds between two looks at the processes
LAST_LINES = 3  # of a failed run's log, that are shown


class Outcome(NamedTuple):
    """How a call ended."""

    stopped: bool
    failed: list[str]  # runs, and contenders that cannot go on


class Process(Protocol):
    """What is used of subprocess.Popen."""

    def poll(self) -> int | None: ...
    def send_signal(self, sig: int, /) -> None: ...


Start = Callable[[Job, Plan], Process]


class _Contender:
    """The runs of one contender: stage after stage, the runs of a stage in any order."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.name, self.ready, self.failed = name, deque[Job](), list[str]()
        self._plan, self._stages, self._running, self._ended = plan, stages(plan, name), 0, False

    def advance(self) -> None:
        """Make the next stage's runs ready, if the last one's are finished."""
        while not (self.ready or self._running or self._ended):
            try:
                self.ready.extend(job for job in next(self._stages) if not has_result(job, self._plan.out))
            except StopIteration:
                self._ended = True
            except UserError as error:
                self._give_up(f"{self.name}: {error}")

    def take(self) -> Job:
        """The next ready run, which is then running."""
        self._running += 1
        return self.ready.popleft()

    def finish(self, job: Job, failure: str | None) -> None:
        """A run has ended. Without one of the runs that are compared for it, no learning rate is chosen."""
        self._running -= 1
        if failure is not None:
            self.failed.append(failure)
            if job.seed is None or job.halving:
                self._give_up(f"{self.name}: no learning rate is chosen, as {job.name} failed")

    def _give_up(self, why: str) -> None:
        if not self._ended:
            self.failed.append(why)
        self._ended = True
        self.ready.clear()


class _Running(NamedTuple):
    job: Job
    contender: _Contender
    process: Process
    since: float


def side_by_side(plan: Plan, start: Start | None = None) -> Outcome:
    """Run what is missing, `plan.jobs` runs at once. start: starts one run."""
    contenders = [_Contender(plan, name) for name in plan.names]
    running: list[_Running] = []
    with Interrupt() as interrupt:
        interrupt.defer()
        asked = False
        try:
            while _fill(plan, contenders, running, start or started, bool(interrupt.requested())):
                if interrupt.requested() and not asked:
                    asked = True
                    _signal(running, signal.SIGTERM)
                running = [one for one in running if not _ended(one, plan, asked)]
                time.sleep(PAUSE)
        except KeyboardInterrupt:
            asked = True
            _signal(running, signal.SIGINT)
            while running:
                running = [one for one in running if not _ended(one, plan, asked)]
                time.sleep(PAUSE)
        finally:
            _signal(running, signal.SIGTERM)
    return Outcome(asked, [failure for each in contenders for failure in each.failed])


def threads(jobs: int) -> int:
    """The share of one process in the processors that this one may use."""
    return max(1, cores() // jobs)


def started(job: Job, plan: Plan) -> subprocess.Popen[bytes]:
    """Start a run as a process. What it prints is in OUT/runs/NAME.log."""
    log = _log(job, plan)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(threads(plan.jobs)), **os.environ}
    words = json.dumps({"job": job._asdict(), "out": plan.out, "device": plan.device})
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "dgpo.bench.worker", words],
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C comes to this process, which passes it on once
        )


def _fill(
    plan: Plan, contenders: Sequence[_Contender], running: list[_Running], start: Start, stopping: bool
) -> list[_Running]:
    """Start runs while there are slots. Returns `running`: empty where nothing is left to do."""
    while not stopping and len(running) < plan.jobs:
        for contender in contenders:
            contender.advance()
        able = [contender for contender in contenders if contender.ready]
        if not able:
            break
        contender = min(able, key=lambda each: each.ready[0].seed is None)  # the first of those with no search left
        job = contender.take()
        print(f"{job.name}: started, its output is in {_log(job, plan)}", flush=True)
        running.append(_Running(job, contender, start(job, plan), time.monotonic()))
    return running


def _ended(one: _Running, plan: Plan, asked: bool) -> bool:
    """Whether a run's process has ended; its contender then hears of it."""
    code = one.process.poll()
    if code is None:
        return False
    finished, took = result_path(one.job, plan.out).exists(), duration(time.monotonic() - one.since)
    if finished:
        print(f"{one.job.name}: finished after {took}", flush=True)
        one.contender.finish(one.job, None)
    elif asked:
        print(f"{one.job.name}: stopped, the same call continues it", flush=True)
    else:
        print(f"{one.job.name}: FAILED after {took} with exit code {code}: {_last_lines(one.job, plan)}", flush=True)
        one.contender.finish(one.job, f"{one.job.name} (exit code {code}, {_log(one.job, plan)})")
    return True


def _signal(running: Sequence[_Running], number: int) -> None:
    for one in running:
        if one.process.poll() is None:
            one.process.send_signal(number)


def _log(job: Job, plan: Plan) -> Path:
    return Path(plan.out) / "runs" / f"{job.name}.log"


def _last_lines(job: Job, plan: Plan) -> str:
    path = _log(job, plan)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return " | ".join(line.strip() for line in lines[-LAST_LINES:] if line.strip())
