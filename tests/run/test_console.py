"""What a run prints."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console as RichConsole

from dgpo.config import Config
from dgpo.run import console as module
from dgpo.run.callbacks import Evaluated
from dgpo.run.console import Console

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
    eval_rewards=("shapes_strict", "crispness"),
    eval_prompts={"seen": "shapes:seen", "unseen": "shapes:unseen"},
)


class Model:
    """The part of a VelocityModel that the plan tells of."""

    device = torch.device("cpu")

    class weights:
        @staticmethod
        def parameters() -> list[torch.Tensor]:
            return [torch.zeros(1000, 3), torch.zeros(7)]


def make(config: Config = CONFIG) -> Console:
    model: Any = Model()
    return Console(config, model, num_prompts=99, evaluations=12_345)


def after(iteration: int) -> Any:
    """A run that has finished so many iterations."""
    return SimpleNamespace(iteration=iteration)


@contextmanager
def started(config: Config = CONFIG) -> Iterator[Console]:
    console = make(config)
    console.on_start(after(0))
    yield console
    console.close()


def evaluated(metrics: Mapping[str, float], alarm: str | None = None, last: bool = False) -> Evaluated:
    return Evaluated(dict(metrics), torch.zeros(0, 3, 8, 8), [], None, alarm, last)


def test_the_plan_tells_what_will_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with started():
        pass
    out = capsys.readouterr().out
    for part in (
        "mine: DGPO on models/[red], prompts shapes:train:counting, reward 1 shapes",
        "trains 3,007 parameters (lora), fp32 on cpu",
        "4 of 99 prompts x 5 images = 20 images, 1 optimizer step(s)",
        "12,345 network evaluations",
        "10 iterations; run folder runs/mine",
    ):
        assert part in out


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with started() as console:
        console.on_evaluation(
            after(0), evaluated({"eval/seen/shapes_strict": 0.4, "eval/seen/shapes_strict/counting": 0.1})
        )
        capsys.readouterr()
        console.on_iteration(after(1), ROW)
        console.on_iteration(after(2), {**ROW, "time/iteration": 1.0})
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.strip() == "an iteration takes about 2 min, those left 15 min without evaluations"
    assert lines == [
        "iteration 1/10  reward 0.500  seen/shapes_strict 0.400  clip 0.250  grad 2.000  0.2 images/s  15 min left",
        "iteration 2/10  reward 0.500  seen/shapes_strict 0.400  clip 0.250  grad 2.000  20.0 images/s  8.0 s left",
    ]


def test_evaluations_show_every_set_and_the_change_since_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    console = make()
    before = {"eval/seen/reward": 0.5, "eval/seen/reward/stderr": 0.1, "eval/unseen/reward": 0.25}
    console.on_evaluation(after(0), evaluated(before))
    changes = {"eval/seen/reward/change": 0.25, "eval/seen/reward/change_low": 0.1, "eval/unseen/reward/change": 0.0}
    later = {"eval/seen/reward": 0.75, "eval/seen/http://host:8000/v1": 1.0, "eval/alarms": 1}
    console.on_evaluation(after(5), evaluated({**before, **changes, **later}, "crispness fell"))
    stopping = make(replace(CONFIG, stop_on_alarm=True))
    stopping.on_evaluation(after(6), evaluated({}, "crispness fell"))
    stopping.on_evaluation(after(7), evaluated({}, "crispness fell", last=True))
    assert capsys.readouterr().out.splitlines() == [
        "evaluation after iteration 0, seen: reward 0.500",
        "evaluation after iteration 0, unseen: reward 0.250",
        "evaluation after iteration 5, seen: reward 0.750 (+0.250), http://host:8000/v1 1.000",
        "evaluation after iteration 5, unseen: reward 0.250 (+0.000)",
        "alarm after iteration 5: crispness fell",
        *[f"evaluation after iteration 6, {name}: " for name in ("seen", "unseen")],
        "alarm after iteration 6: crispness fell",
        "  stop_on_alarm is on: the run is saved and stops here",
        *[f"evaluation after iteration 7, {name}: " for name in ("seen", "unseen")],
        "alarm after iteration 7: crispness fell",
    ]


def test_a_live_line_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        module, "RichConsole", lambda **options: RichConsole(file=screen, force_terminal=True, width=160, **options)
    )
    with started() as console:
        console.on_iteration(after(3), ROW)
    out = screen.getvalue()
    assert "3/10" in out
    assert "reward 0.500" in out
    assert "iteration 3/10" not in out


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpo.distributed.is_main", lambda: False)
    with started() as console:
        console.on_evaluation(after(0), evaluated({"eval/seen/reward": 0.5}))
        console.on_iteration(after(1), ROW)
    assert capsys.readouterr().out == ""


def test_a_constant_reward_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with started() as shown:
        shown.constant(1, {"shapes": 0.0})
        shown.constant(2, {"shapes": 0.0, "clip": 0.5})
    out = capsys.readouterr().out
    assert "warning: the reward 'shapes' gave all images of iteration 1 the score 0, from which nothing can be" in out
    assert "warning: the reward 'clip' gave all images of iteration 2 the score 0.5" in out
    assert out.count("warning") == 2
