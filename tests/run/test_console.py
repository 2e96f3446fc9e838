"""What a run prints."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console as RichConsole

from dgpo.algorithms import DGPO
from dgpo.config import Config
from dgpo.run import console as module
from dgpo.run import console_log
from dgpo.run.callbacks import Evaluated
from dgpo.run.console import Console, RunCounts
from dgpo.run.pace import PhaseProgress, TimeLeft, span
from dgpo.training import schedule

ROW = {"train/reward_mean": 0.5, "train/clip_fraction": 0.25, "train/grad_norm": 2.0, "time/iteration": 100.0}
CONFIG = Config(
    name="mine",
    model="models/[red]",
    dtype="fp32",
    out="runs/mine",
    iterations=10,
    prompts="shapes:train:counting",
    num_groups=4,
    group_size=5,
    rewards={"shapes": 1.0},
    eval_rewards=("shapes_strict", "crispness"),
    eval_prompts={"seen": "shapes:seen", "unseen": "shapes:unseen"},
    eval_every=5,
)


class Model:
    """The part of a VelocityModel that the plan tells of."""

    device = torch.device("cpu")

    class weights:
        shapes: ClassVar = {"weight": torch.Size((1000, 3)), "bias": torch.Size((7,))}


def make(config: Config = CONFIG) -> Console:
    model: Any = Model()
    return Console(config, model, RunCounts(99, 1234, partial(schedule.evaluations_ahead, config), 48))


def at(iteration: int, folder: Path = Path("runs/mine"), best: int = 0, done: bool = False) -> Any:
    """A run after so many iterations."""
    return SimpleNamespace(iteration=iteration, best_iteration=best, done=done, folder=folder)


def evaluated(metrics: dict[str, float], alarm: str | None = None, last: bool = False) -> Evaluated:
    # by name: what else an evaluation holds is not printed
    fields = dict.fromkeys(Evaluated._fields)
    return Evaluated(**{**fields, "metrics": metrics, "alarm": alarm, "last": last})  # pyright: ignore


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_plan_tells_what_will_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    console = make()
    console.on_start(at(0))
    console.close()
    out = capsys.readouterr().out
    for part in (
        "mine: DGPO on models/[red], prompts shapes:train:counting, reward 1 shapes",
        "trains 3,007 parameters (lora), fp32 on cpu",
        "4 of 99 prompts x 5 images = 20 images, 1 optimizer step(s)",
        "1,234 network forwards",
        "10 iterations; run folder runs/mine",
    ):
        assert part in out


def test_more_groups_than_prompts_are_said_to_repeat_them() -> None:
    config = replace(CONFIG, num_groups=100)
    lines = make(config).plan()
    assert lines[2].startswith("  an iteration: 100 groups from 99 prompts x 5 images = 500 images")
    assert lines[3] == "  num_groups=100 is more than the 99 prompts: they repeat within an iteration"
    offline = replace(config, offline="groups")
    assert make(offline).plan()[3].startswith("  num_groups=100 is more than the 99 groups of the dataset")
    assert not any("repeat" in line for line in make(replace(config, num_groups=99)).plan())


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = make()
    scores = {"eval/seen/crispness": 0.9, "eval/seen/shapes": 0.4, "eval/seen/shapes/counting": 0.1}
    console.on_evaluation(at(0), evaluated(scores))
    capsys.readouterr()
    console.on_iteration(at(1), ROW)
    console.on_iteration(at(2), {**ROW, "time/iteration": 50.0})
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.strip() == "an iteration takes about 2 min; 15 min and 2 evaluations left"
    watched = "reward 0.500  seen/shapes 0.400"
    assert lines == [
        f"iteration 1/10  {watched} (1 iteration ago)  clip 0.250  grad 2.000  0.2 images/s  "
        "15 min and 2 evaluations left",
        f"iteration 2/10  {watched} (2 iterations ago)  clip 0.250  grad 2.000  0.4 images/s  "
        "7 min and 2 evaluations left",
    ], "the first iteration, slow once, no longer counts"


def test_what_is_switched_off_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    make(replace(CONFIG, algorithm=DGPO(clip_range=None))).on_iteration(at(1), ROW)
    make().on_iteration(at(1), {"train/reward_mean": 0.5, "time/iteration": 100.0})
    unclipped, untrained = (line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration"))
    assert "clip" not in unclipped
    assert "grad 2.000" in unclipped
    assert "clip" not in untrained
    assert "grad" not in untrained
    assert "nothing trained" in untrained


def test_evaluations_show_every_set_and_the_change_since_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    console = make()
    before = {"eval/seen/reward": 0.5, "eval/seen/reward/stderr": 0.1, "eval/unseen/reward": 0.25}
    console.on_evaluation(at(0), evaluated(before))
    changes = {"eval/seen/reward/change": 0.25, "eval/seen/reward/change_low": 0.1, "eval/unseen/reward/change": 0.0}
    later = {"eval/seen/reward": 0.75, "eval/seen/http://host:8000/v1": 1.0, "eval/alarms": 1}
    console.on_evaluation(at(5), evaluated({**before, **changes, **later}, "crispness fell"))
    stopping = make(replace(CONFIG, stop_on_alarm=True, report=False))
    stopping.on_evaluation(at(5), evaluated({}, "crispness fell"))
    stopping.on_evaluation(at(10), evaluated({}, "crispness fell", last=True))
    assert capsys.readouterr().out.splitlines() == [
        "evaluation after iteration 0, seen: reward 0.500",
        "evaluation after iteration 0, unseen: reward 0.250",
        "  the report is runs/mine/report.html; it is written anew at every evaluation",
        "evaluation after iteration 5, seen: reward 0.750 (+0.250), http://host:8000/v1 1.000",
        "evaluation after iteration 5, unseen: reward 0.250 (+0.000)",
        "alarm after iteration 5: crispness fell",
        "evaluation after iteration 5, seen: ",
        "evaluation after iteration 5, unseen: ",
        "alarm after iteration 5: crispness fell",
        "  stop_on_alarm is on: the run is saved and stops here",
        "evaluation after iteration 10, seen: ",
        "evaluation after iteration 10, unseen: ",
        "alarm after iteration 10: crispness fell",
    ]


def test_live_lines_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        module, "RichConsole", lambda **options: RichConsole(file=screen, force_terminal=True, width=160, **options)
    )
    console = make()
    console.on_start(at(0))
    console.on_iteration(at(3), ROW)
    console.on_progress(at(3), "sampling", 64, 144)
    console._bar.refresh()
    shown = screen.getvalue()
    console.close()
    assert "iteration 3/10" in shown
    assert "reward 0.500" in shown
    assert "sampling" in shown
    assert "64/144 images" in shown


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpo.distributed.is_main", lambda: False)
    console = make()
    console.on_start(at(0))
    console.on_progress(at(0), "evaluating", 0, 8)
    console.on_evaluation(at(0), evaluated({"eval/seen/reward": 0.5}))
    console.on_iteration(at(1), ROW)
    console.close()
    module.say("loading")
    assert capsys.readouterr().out == ""


def test_a_constant_reward_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = make()
    console.constant(1, {"shapes": 0.0})
    console.constant(2, {"shapes": 0.0, "clip": 0.5})
    out = capsys.readouterr().out
    assert "warning: the reward 'shapes' gave all images of iteration 1 the score 0, from which nothing can be" in out
    assert "warning: the reward 'clip' gave all images of iteration 2 the score 0.5" in out
    assert out.count("warning") == 2


def test_time_left_counts_evaluations() -> None:
    clock = Clock()
    left = TimeLeft(CONFIG, partial(schedule.evaluations_ahead, CONFIG), clock)
    left.iterated(1, {"time/iteration": 10.0})
    assert str(left) == "2 min and 2 evaluations left", "9 iterations, and evaluations after 5 and 10"
    left.evaluating()
    clock.now += 40  # of which the next iteration takes 10
    left.iterated(6, {"time/iteration": 10.0})
    assert left.evaluation == 30
    assert str(left) == f"{span(4 * 10 + 30)} left"
    left.iterated(10, {"time/iteration": 10.0})
    assert str(left) == "30 s left", "the last evaluation is still to come"


@pytest.mark.parametrize(
    ("config", "metrics", "headline"),
    [
        ({"rewards": {"shapes": 1.0}}, {"shapes": 0.2, "reward": 0.2, "crispness": 0.9}, "seen/shapes 0.200"),
        ({"rewards": {"a:b": 0.5, "c:d": 0.5}}, {"a:b": 0.1, "reward": 0.3}, "seen/reward 0.300"),
        ({"rewards": {"a:b": 0.5, "shapes_strict": 0.5}}, {"reward": 0.3, "shapes_strict": 0.1}, "shapes_strict 0.100"),
    ],
)
def test_the_line_of_an_iteration_shows_a_trained_score(
    config: dict[str, Any], metrics: dict[str, float], headline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console = make(replace(CONFIG, **config))
    console.on_evaluation(at(0), evaluated({f"eval/seen/{name}": value for name, value in metrics.items()}))
    console.on_iteration(at(1), ROW)
    assert f"{headline} (1 iteration ago)" in capsys.readouterr().out


def test_one_reward_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    make().on_evaluation(at(0), evaluated({"eval/seen/shapes": 0.2, "eval/seen/reward": 0.2, "eval/seen/drift": 0.1}))
    assert capsys.readouterr().out.splitlines()[0] == "evaluation after iteration 0, seen: shapes 0.200, drift 0.100"


def test_what_comes_before_the_first_iteration_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for config, run, said in (
        (CONFIG, at(0, best=-1), "begins with an evaluation of the model before any training: 48 images"),
        (CONFIG, at(3), "goes on after iteration 3"),
        (CONFIG, at(10, done=True), "finished: all its 10 iterations are done; a larger --iterations continues it"),
        (CONFIG, at(10, done=True), "continues it, with dgpo train --resume runs/mine"),
        (replace(CONFIG, max_minutes=2.0), at(4, done=True), "its 2 minutes are over; a larger --max-minutes"),
    ):
        console = make(config)
        console.on_start(run)
        console.close()
        assert said in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (10, "Weights: runs/mine/final, after iteration 10, whose evaluation was the best"),
        (5, "Weights: runs/mine/final, after iteration 10. The best evaluation was that after iteration 5: its weights "
         "are in runs/mine/best"),
        (0, "Weights: runs/mine/final, after iteration 10. No evaluation was better than the one before training"),
        (-1, "Weights: runs/mine/final, after iteration 10"),
    ],
)  # fmt: skip
def test_the_end_names_the_report_and_the_weights(best: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    make().on_end(at(10, best=best, done=True))
    assert capsys.readouterr().out.splitlines() == ["Report: runs/mine/report.html", said]
    make(replace(CONFIG, report=False)).on_end(at(3))
    assert capsys.readouterr().out == "", "stopped: nothing is exported"


def test_time_left_takes_what_is_measured_now_and_then_apart() -> None:
    """Of 20 iterations every fifth takes 100 s, the others 10 s; the very first 300 s."""
    config = replace(CONFIG, iterations=20, eval_every=0, noise_scale_every=5)
    left = TimeLeft(config, partial(schedule.evaluations_ahead, config), Clock())
    measured = {"train/grad_noise_scale": 9.0}
    left.iterated(1, {"time/iteration": 300.0, **measured})
    assert not left.exact
    assert str(left) == f"at most {span(19 * 300)} left"
    left.iterated(2, {"time/iteration": 10.0})
    assert left.exact
    for iteration in (3, 4, 5):
        left.iterated(iteration, {"time/iteration": 10.0})
    left.iterated(6, {"time/iteration": 100.0, **measured})
    assert str(left) == f"{span(14 * (0.8 * 10 + 0.2 * 100))} left", "the first no longer counts"


def test_the_first_iteration_says_that_it_measured_more(capsys: pytest.CaptureFixture[str]) -> None:
    console = make(replace(CONFIG, eval_every=0))
    console.on_iteration(at(1), {**ROW, "train/grad_noise_scale": 3.0})
    console.on_iteration(at(2), {**ROW, "time/iteration": 50.0})
    first, _, second, _ = capsys.readouterr().out.splitlines()
    assert "the first iteration took 2 min. It also measured the gradient noise scale" in first
    assert "at most 15 min left" in first
    assert second == "  an iteration takes about 60 s; 8 min left", "0.8 * 50 s + 0.2 * 100 s"


def test_time_left_ends_with_the_minutes_of_a_run() -> None:
    config = replace(CONFIG, max_minutes=2.0, eval_every=0)
    left = TimeLeft(config, partial(schedule.evaluations_ahead, config), Clock())
    left.iterated(1, {"time/iteration": 30.0, "time/elapsed": 30.0})
    assert str(left) == "2 min left"
    left.iterated(2, {"time/iteration": 30.0, "time/elapsed": 60.0})
    assert str(left) == "60 s left"


@pytest.mark.parametrize("every", [0, 1, 3, 5, 20])
@pytest.mark.parametrize("iteration", [1, 4, 5, 9, 10])
@pytest.mark.parametrize("end", [10, 12])
def test_evaluations_ahead_are_those_that_the_loop_makes(every: int, iteration: int, end: int) -> None:
    config = replace(CONFIG, eval_every=every)
    made = sum(schedule.evaluates(config, i, last=i == end) for i in range(iteration, end + 1))
    assert schedule.evaluations_ahead(config, iteration, end) == made


def lines(told: list[tuple[float, str, int, int]]) -> list[str]:
    """The lines that a log file gets. told: (seconds since the last, phase, done, total)"""
    clock, found = Clock(), []
    phases = PhaseProgress(clock)
    for seconds, phase, done, total in told:
        clock.now += seconds
        text = phases.text(phase, done, total, foretell=True)
        if phases.due(phase, done, total):
            found.append(f"{phase} {text}")
            phases.printed()
    return found


def test_a_phase_is_announced_once_and_then_told_at_quarters_ten_seconds_apart() -> None:
    steps = [(0.0 if not done else 4.0, "evaluating", done, 100) for done in range(0, 101, 10)]
    assert lines(steps) == [
        "evaluating 0/100 images",
        "evaluating 30/100 images, 28 s left",
        "evaluating 60/100 images, 16 s left",
        "evaluating 90/100 images",
    ], "at 100 the result follows"
    fast = [(0.1, phase, done, 2) for _ in range(15) for phase in ("sampling", "updating") for done in (0, 1, 2)]
    assert lines(fast) == ["sampling 0/2 images", "updating 0/2 backward passes"]


def test_a_long_phase_is_told_every_minute() -> None:
    slow = [(20.0, "sampling", done, 1000) for done in range(10)]
    assert [line.split(",")[0] for line in lines(slow)] == [f"sampling {n}/1000 images" for n in (0, 3, 6, 9)]
    assert lines([(0, "sampling", 0, 9), (70.0, "scoring", 0, 0)]) == ["sampling 0/9 images", "scoring "]


def test_of_several_processes_the_first_says_that_the_count_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpo.distributed.world_size", lambda: 8)
    assert PhaseProgress().text("sampling", 2, 18, foretell=False) == "2/18 images of process 1 of 8"


def test_spans() -> None:
    assert [span(s) for s in (1.24, 45.2, 89, 90, 720, 5400, 90000)] == [
        *("1.2 s", "45 s", "89 s", "2 min", "12 min", "1.5 h", "25.0 h"),
    ]


def test_the_lines_are_kept_in_the_run_folder_and_their_file_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(console_log, "MOST", 2000)
    for number in range(500):
        console_log.add_line(tmp_path, f"iteration {number}/500  reward 0.5")
    lines = console_log.last_lines(tmp_path, 3)
    assert [line.split()[2] for line in lines] == ["497/500", "498/500", "499/500"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d iteration 499/500  reward 0.5", lines[-1])
    assert (tmp_path / console_log.NAME).stat().st_size < 2100
    assert console_log.last_lines(tmp_path / "none", 3) == []
    console_log.add_line(tmp_path / "none", "a folder that is gone stops nothing")


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_said_lies_in_the_run_folder_without_the_phases(terminal, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_output", lambda: RichConsole(file=io.StringIO(), force_terminal=terminal, width=200))
    console = make()
    console.on_start(at(0, tmp_path))
    console.on_progress(at(0, tmp_path), "sampling", 0, 20)
    console.on_evaluation(at(0, tmp_path), evaluated({"eval/seen/shapes": 0.5}))
    console.on_iteration(at(1, tmp_path), ROW)
    console.close()
    lines = [line.partition(" ")[2] for line in console_log.last_lines(tmp_path, 50)]
    assert lines[0].startswith("mine: DGPO on models/[red]")
    assert any(line.startswith("evaluation after iteration 0, seen: shapes 0.500") for line in lines)
    assert lines[-1].startswith("iteration 1/10  reward 0.500")
    assert not any("sampling" in line for line in lines)
