"""Requests to a run in progress: heard once an iteration, and without an effect on what is trained."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import newest, rows, run, small, tensors

from dgpo.config import Config
from dgpo.errors import UserError
from dgpo.run import checkpoint, lock, requests
from dgpo.run.callbacks import Callback, Progress


class Asks(Callback):
    """Asks its run once an iteration is done, as another process would."""

    def __init__(self, iteration: int, *names: str) -> None:
        self._iteration, self._names = iteration, names

    def on_iteration(self, run: Progress, metrics: dict[str, float]) -> None:
        if run.iteration == self._iteration:
            for name in self._names:
                requests.ask(run.folder, name)


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path) -> Config:
    """Four iterations, evaluated and saved at the ends only."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na green cat\n")
    return small(
        tiny_folder,
        tmp_path / "plain",
        iterations=4,
        eval_prompts={"seen": str(prompts)},
        eval_images_per_prompt=1,
        eval_every=4,
        num_samples=1,
        checkpoint_every=4,
        keep_checkpoints=9,
    )


def other(config: Config, name: str) -> Config:
    return replace(config, out=str(Path(config.out or "").with_name(name)))


def trained(folder: Path) -> list[dict[str, float]]:
    return [row for row in rows(folder) if "train/loss" in row]


def evaluated(folder: Path) -> list[float]:
    return [row["iteration"] for row in rows(folder) if "eval/seen/reward" in row]


@pytest.mark.slow
def test_an_extra_evaluation_and_save_change_no_bit_of_the_training(config: Config):
    plain = run(config).run
    asked = run(other(config, "asked"), callbacks=[Asks(2, "evaluate", "save")]).run
    assert (evaluated(plain), evaluated(asked)) == ([0, 4], [0, 2, 4])
    assert trained(plain) == trained(asked)
    left, right = tensors(plain, 4), tensors(asked, 4)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert (checkpoint.folder_of(asked, 2)).is_dir()
    assert not (checkpoint.folder_of(plain, 2)).exists()


@pytest.mark.slow
def test_a_stop_saves_and_the_resumed_run_equals_one_that_was_never_stopped(config: Config):
    plain = run(config).run
    stopped = run(other(config, "stopped"), callbacks=[Asks(3, "stop")])
    assert stopped.interrupted
    assert (stopped.iterations, newest(stopped.run)) == (3, 3)
    (stopped.run / "requests").mkdir(exist_ok=True)
    (stopped.run / "requests" / "stop").touch()  # a leftover, of somebody who came too late
    resumed = run(other(config, "stopped"), resume=True)
    assert not resumed.interrupted
    assert trained(plain) == trained(resumed.run)
    left, right = tensors(plain, 4), tensors(resumed.run, 4)
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert requests.waiting(resumed.run) == []


@pytest.mark.slow
def test_a_run_without_evaluations_makes_none(tiny_folder: Path, tmp_path: Path):
    done = run(small(tiny_folder, tmp_path / "run", iterations=2), callbacks=[Asks(1, "evaluate")])
    assert not any(key.startswith("eval/") for row in rows(done.run) for key in row)


def test_nobody_is_asked_where_nobody_listens(tmp_path: Path):
    with pytest.raises(UserError, match="no process trains in"):
        requests.ask(tmp_path, "save")
    assert not (tmp_path / "requests").exists()
    with lock.held(tmp_path), pytest.raises(UserError, match="there is no request 'halt'"):
        requests.ask(tmp_path, "halt")


def test_a_request_is_taken_once(tmp_path: Path):
    with lock.held(tmp_path):
        requests.ask(tmp_path, "save")
        requests.ask(tmp_path, "save")
    assert requests.waiting(tmp_path) == ["save"]
    assert requests.take(tmp_path) == {"save"}
    assert requests.take(tmp_path) == set()


def test_what_cannot_be_deleted_is_heard_once_and_keeps_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("save", "evaluate"):
        (tmp_path / "requests" / name).mkdir(parents=True)
    (tmp_path / "requests" / "stop").touch()
    assert requests.take(tmp_path) == {"save", "evaluate", "stop"}
    assert requests.waiting(tmp_path) == ["save", "evaluate"], "a failure to delete one does not keep the next"
    assert requests.take(tmp_path) == set()
    assert capsys.readouterr().err.count("cannot be deleted") == 2


def test_what_was_there_at_the_start_and_cannot_be_deleted_is_told_once_and_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stop = tmp_path / "requests" / "stop"
    stop.mkdir(parents=True)
    requests.clear(tmp_path)
    assert f"{stop} cannot be deleted" in capsys.readouterr().err
    assert requests.take(tmp_path) == set()
    requests.clear(tmp_path)
    assert capsys.readouterr().err == ""
    os.utime(stop, (1, 1))
    assert requests.take(tmp_path) == {"stop"}, "asked again"
