"""Several runs at once: the same runs as one after the other, in slots that contenders share, and none is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from trained import BEST, Trained
from waiting import until

from dgpo.bench import parallel
from dgpo.bench.parallel import side_by_side, threads
from dgpo.bench.plan import LEARNING_RATES, Plan
from dgpo.bench.run import Job, bench, results, run_job
from dgpo.commands.main import main


class Slots:
    """Starts runs that do nothing for some looks at them and are then trained at once, in this process."""

    def __init__(self) -> None:
        self.alive, self.most, self.started = 0, 0, list[Job]()
        self.fails: Callable[[Job], bool] = lambda job: False

    def __call__(self, job: Job, plan: Plan) -> Run:
        self.started.append(job)
        self.alive += 1
        self.most = max(self.most, self.alive)
        return Run(self, job, plan)


class Run:
    def __init__(self, slots: Slots, job: Job, plan: Plan) -> None:
        self.slots, self.job, self.plan, self.looks = slots, job, plan, 2 + len(slots.started) % 3

    def poll(self) -> int | None:
        self.looks -= 1
        if self.looks > 0:
            return None
        self.slots.alive -= 1
        if self.slots.fails(self.job):
            return 1
        return 0 if run_job(self.job, self.plan.out) else 130

    def send_signal(self, sig: int, /) -> None:
        raise AssertionError("nobody asked it to stop")


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch, trained: Trained) -> Slots:
    monkeypatch.setattr(parallel, "PAUSE", 0)
    return Slots()


def made(out: Path) -> set[str]:
    return {path.name for path in results(out).rglob("*.json")}


def test_the_same_runs_are_made_as_one_after_the_other(slots: Slots, trained: Trained, tmp_path: Path) -> None:
    trained.best = 1.6e-2  # so that both grids grow twice
    plan = Plan(only=("awm", "crd"), seeds=(0, 1), jobs=4, out=str(tmp_path / "four"))
    assert side_by_side(plan, slots) == (False, [])
    assert slots.most == 4
    bench(Plan(only=("awm", "crd"), seeds=(0, 1), out=str(tmp_path / "one")))
    assert made(tmp_path / "four") == made(tmp_path / "one")
    assert len(slots.started) == len({*slots.started}) == 2 * (len(LEARNING_RATES) + 2 + 2 + 1)
    grown = next(place for place, job in enumerate(slots.started) if job.lr > max(LEARNING_RATES))
    assert {job.contender for job in slots.started[:grown]} == {"awm", "crd"}, "crd began while awm's search went on"
    count = len(slots.started)
    assert side_by_side(plan, slots) == (False, [])
    assert len(slots.started) == count, "nothing is run twice"


def test_runs_that_are_compared_start_before_other_searches(slots: Slots, tmp_path: Path) -> None:
    side_by_side(Plan(only=("awm", "crd"), seeds=(0,), jobs=1, out=str(tmp_path)), slots)
    assert [job.contender for job in slots.started] == ["awm"] * 7 + ["crd"] * 7


def test_a_run_that_fails_is_named_and_the_others_go_on(slots: Slots, tmp_path: Path, capsys: Any) -> None:
    slots.fails = lambda job: (job.contender, job.lr) == ("awm", 1e-3) or (job.contender, job.seed) == ("crd", 0)
    outcome = side_by_side(Plan(only=("awm", "crd"), seeds=(0, 1), jobs=3, halve=False, out=str(tmp_path)), slots)
    assert not outcome.stopped
    assert [failure.partition(" (exit code 1,")[0] for failure in outcome.failed] == [
        "awm-plain-lr0.001",
        "awm: no learning rate is chosen, as awm-plain-lr0.001 failed",
        "crd-plain-seed0",
    ]
    assert {name for name in made(tmp_path) if "seed" in name} == {"crd-plain-seed1.json"}
    assert "crd-plain-seed0: FAILED after" in capsys.readouterr().out
    slots.fails = lambda job: False
    assert side_by_side(Plan(only=("awm", "crd"), seeds=(0, 1), jobs=3, halve=False, out=str(tmp_path)), slots) == (
        False,
        [],
    )


def test_no_seed_runs_where_a_rate_at_full_length_failed(slots: Slots, tmp_path: Path) -> None:
    slots.fails = lambda job: job.halving and job.lr == BEST
    _, why = side_by_side(Plan(only=("awm",), seeds=(0, 1), out=str(tmp_path)), slots).failed
    assert why == f"awm: no learning rate is chosen, as awm-plain-seed0-lr{BEST:g} failed"
    assert not any(job.seed == 1 for job in slots.started)


def test_a_result_of_other_settings_stops_its_contender_alone(slots: Slots, tmp_path: Path) -> None:
    bench(Plan(only=("awm",), seeds=(0,), out=str(tmp_path)))
    plan = Plan(only=("awm", "crd"), seeds=(0,), jobs=2, search_forwards=90_000, out=str(tmp_path))
    (failure,) = side_by_side(plan, slots).failed
    assert failure.startswith("awm: ")
    assert "was made with another iterations" in failure
    assert "crd-plain-seed0.json" in made(tmp_path)


def test_the_command_exits_with_what_happened(slots: Slots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parallel, "started", slots)
    words = ["bench", "--only", "awm", "--seeds", "0", "--jobs", "2", "--device", "cpu", "--out", str(tmp_path)]
    slots.fails = lambda job: job.seed == 0
    assert main(words) == 1
    slots.fails = lambda job: False
    assert main(words) == 0
    assert (tmp_path / "bench.html").exists()
    assert {job.lr for job in slots.started if job.seed == 0} == {BEST, BEST / 2}


WAITS = """
import signal, sys, time
def stop(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(130) if number == signal.SIGINT or {polite} else None
for name in ("SIGINT", "SIGTERM"):
    signal.signal(getattr(signal, name), stop)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize(("polite", "heard"), [(True, ["SIGTERM"]), (False, ["SIGTERM", "SIGINT"])])
def test_a_signal_stops_all_runs_and_a_second_one_at_once(polite: bool, heard: list[str], tmp_path: Path) -> None:
    logs: list[Path] = []

    def waiting(job: Job, plan: Plan) -> subprocess.Popen[bytes]:
        logs.append(tmp_path / f"{job.name}.txt")
        with logs[-1].open("wb") as said:
            words = [sys.executable, "-c", WAITS.format(polite=polite)]
            return subprocess.Popen(words, stdout=said, start_new_session=True)

    def said(word: str) -> bool:
        return len(logs) == 2 and all(word in log.read_text() for log in logs)

    def press() -> None:
        for word in ("ready", "SIGTERM")[: len(heard)]:
            with suppress(AssertionError):  # all is stopped even then
                until(lambda word=word: said(word))
            os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    outcome = side_by_side(Plan(only=("awm",), seeds=(0,), jobs=2, out=str(tmp_path)), waiting)
    finger.join()
    assert outcome == (True, [])
    assert [log.read_text().split() for log in logs] == [["ready", *heard]] * 2
    assert not made(tmp_path)


@pytest.mark.slow
def test_a_run_stops_when_the_process_that_started_it_is_gone() -> None:
    lines = ("import signal, time", "from dgpo.utils.parent import end_with_parent")
    code = "\n".join((*lines, "end_with_parent(signal.SIGTERM)", "time.sleep(60)"))
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(60) == -signal.SIGTERM


def test_processors_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert [threads(jobs) for jobs in (1, 3, 8, 40)] == [16, 5, 2, 1]
