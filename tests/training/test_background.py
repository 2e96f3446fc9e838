"""Saving while training goes on: the same checkpoints, one at a time, and none is lost or half written."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
import slow_saves
from runs import assert_same_run, newest, rows, run, small
from waiting import until

from dgpo import Callback, Config
from dgpo.errors import RunFailed
from dgpo.models import LoraConfig
from dgpo.run import checkpoint

pytestmark = pytest.mark.slow
ONE = {"keep_checkpoints": 9}


def contents(folder: Path) -> dict[str, bytes]:
    """Of a checkpoint, but for what says when and where it was made."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    state = json.loads(files.pop("state.json"))
    state["state"].pop("elapsed")
    sums = json.loads(files.pop("checksums.json"))
    assert sums.keys() == {*files, "state.json"}
    files.pop("config.yaml")
    return {**files, "state": json.dumps(state).encode()}


class Hears(Callback):
    """The events of a run by name, with the iteration that each is of."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def on_iteration(self, run: Any, metrics: Any) -> None:
        self.events.append(("iteration", run.iteration))

    def on_checkpoint(self, run: Any, folder: Path) -> None:
        assert checkpoint.damage(folder) is None
        self.events.append(("checkpoint", checkpoint.iteration_of(folder)))


def patch(monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None]) -> None:
    monkeypatch.setattr(checkpoint, "save_tensors", slow_saves.instead(act))


@pytest.mark.parametrize("changes", [{}, {"finetune": "full", "averages": "host"}])
def test_checkpoints_are_those_of_the_foreground(changes: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    def config(name: str, **more: Any) -> Config:
        return small(tiny_folder, tmp_path / name, **ONE, **changes, **more)

    run(config("foreground"))
    run(config("background", background_saving=True))
    found, expected = (checkpoint.list_checkpoints(tmp_path / name) for name in ("background", "foreground"))
    assert [path.name for path in found] == [path.name for path in expected]
    assert len(found) == 4
    for own, other in zip(found, expected):
        assert checkpoint.damage(own) is None
        assert contents(own) == contents(other)
    assert rows(tmp_path / "background") == rows(tmp_path / "foreground")


def test_training_goes_on_while_a_checkpoint_is_written(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is written only once the second iteration is done, and it holds what the first had made."""
    second_done = threading.Event()

    def wait(path: Path) -> None:
        if "iteration-000001" in str(path):
            assert second_done.wait(60)

    class Done(Hears):
        def on_iteration(self, run: Any, metrics: Any) -> None:
            super().on_iteration(run, metrics)
            if run.iteration == 2:
                second_done.set()

    patch(monkeypatch, wait)
    hears = Done()
    run(small(tiny_folder, tmp_path / "run", background_saving=True, **ONE), callbacks=[hears])
    monkeypatch.undo()
    run(small(tiny_folder, tmp_path / "usual", **ONE))
    of = hears.events.index
    assert of(("iteration", 2)) < of(("checkpoint", 1)) < of(("checkpoint", 2)) < of(("checkpoint", 3))
    for iteration in (1, 2, 3):
        own, other = (checkpoint.folder_of(tmp_path / name, iteration) for name in ("run", "usual"))
        assert contents(own) == contents(other)


def test_one_is_written_at_a_time_and_old_ones_go_when_the_new_one_is_there(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[tuple[str, list[int]]] = []

    def slow(path: Path) -> None:
        time.sleep(0.2 * slow_saves.behind())
        there = [checkpoint.iteration_of(one) for one in checkpoint.list_checkpoints(tmp_path / "run")]
        places.append((path.parent.name, there))

    patch(monkeypatch, slow)
    run(small(tiny_folder, tmp_path / "run", background_saving=True, keep_checkpoints=1))
    folders = [name for name, _ in places]
    assert folders == sorted(folders), "none begins before the last one is done"
    for name, there in places:
        iteration = int(name[-6:])
        assert there == [iteration - 1] * (iteration > 0), "the last one stays until this one is whole"
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["iteration-000003"]


def test_what_fails_in_the_thread_ends_the_run(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch, slow_saves.full_disk)
    config = small(tiny_folder, tmp_path / "run", background_saving=True, iterations=9, **ONE)
    with pytest.raises(RunFailed, match=r"No space left on device.*Nothing is lost: iteration 3 is saved"):
        run(config)
    monkeypatch.undo()
    assert newest(tmp_path / "run") == 3, "it is noticed after the next iteration, which is then saved as ever"
    assert not [*(tmp_path / "run" / "checkpoints").glob(".partial*")]
    run(replace(config, iterations=4), resume=True)
    run(small(tiny_folder, tmp_path / "usual", iterations=4))
    assert_same_run(tmp_path / "run", tmp_path / "usual", 4)


def test_the_last_one_that_fails_is_told_too(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        if "iteration-000003" in str(path):
            raise OSError(28, "No space left on device")

    patch(monkeypatch, fail)
    with pytest.raises(RunFailed, match=r"No space left on device.*Saving failed too.*what came after iteration 2"):
        run(small(tiny_folder, tmp_path / "run", background_saving=True))
    assert newest(tmp_path / "run") == 2


def test_a_failure_of_the_run_waits_for_it(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amid optimizer steps nothing else can be saved, so what is being written is all there is."""
    patch(monkeypatch, lambda path: time.sleep(0.3 * slow_saves.behind()))

    class Fails(Callback):
        def on_start(self, run: Any) -> None:
            def step(*_: Any) -> None:
                if run.state.step == 6:
                    raise ZeroDivisionError("amid two steps")

            run.optimizer.register_step_post_hook(step)

    config = small(tiny_folder, tmp_path / "run", background_saving=True, updates_per_rollout=2)
    with pytest.raises(RunFailed, match=r"amid two steps.*Nothing is lost: iteration 2 is saved"):
        run(config, callbacks=[Fails()])
    assert newest(tmp_path / "run") == 2


def test_ctrl_c_waits_for_it(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the second one the run stops amid an iteration."""
    patch(monkeypatch, lambda path: time.sleep(0.3 * slow_saves.behind()))

    class Twice(Callback):
        def on_rollout(self, run: Any, rollout: Any) -> None:
            if run.iteration == 2:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(small(tiny_folder, tmp_path / "run", background_saving=True), callbacks=[Twice()])
    assert newest(tmp_path / "run") == 2


def test_a_third_ctrl_c_stops_without_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second one says what is waited for."""
    released = threading.Event()

    def wait(path: Path) -> None:
        if slow_saves.behind():
            released.wait(60)

    patch(monkeypatch, wait)

    class Thrice(Callback):
        def on_rollout(self, run: Any, rollout: Any) -> None:
            if run.iteration == 1:
                threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    config = small(tiny_folder, tmp_path / "run", background_saving=True)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(config, callbacks=[Thrice()])
        assert not released.is_set()
        assert newest(tmp_path / "run") == 0
        assert "Ctrl-C stops without it" in capfd.readouterr().err
    finally:
        released.set()


def test_sigterm_waits_for_it(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch, lambda path: time.sleep(0.3 * slow_saves.behind()))
    config = small(tiny_folder, tmp_path / "run", background_saving=True, iterations=4)
    result = run(config, callbacks=[slow_saves.Terminate(after=2)])
    assert result.requeue
    assert newest(tmp_path / "run") == result.iterations
    monkeypatch.undo()
    run(config, resume=True)
    run(small(tiny_folder, tmp_path / "usual", iterations=4))
    assert_same_run(tmp_path / "run", tmp_path / "usual", 4)


def test_a_dropped_iteration_waits_for_it(tiny_folder: Path, tmp_path: Path) -> None:
    config = small(tiny_folder, tmp_path / "run", background_saving=True, grace_seconds=6.0)
    assert ranks.end(ranks.start(1, slow_saves.terminated, config)) == [75]
    path = checkpoint.latest(tmp_path / "run")
    assert path is not None
    assert checkpoint.iteration_of(path) == 2
    assert checkpoint.damage(path) is None


def test_a_kill_amid_writing_leaves_the_last_one(tiny_folder: Path, tmp_path: Path) -> None:
    """And the resumed run is the one never stopped, bit for bit."""
    config = small(tiny_folder, tmp_path / "run", background_saving=True)
    (process,) = ranks.start(1, slow_saves.hanging, config, 2)
    partial = tmp_path / "run" / "checkpoints" / ".partial-iteration-000002" / "policy.safetensors"
    try:
        until(partial.exists)
    finally:
        process.kill()
        ranks.end([process])
    assert partial.exists()
    assert newest(tmp_path / "run") == 1
    run(config, resume=True)
    run(small(tiny_folder, tmp_path / "usual"))
    assert_same_run(tmp_path / "run", tmp_path / "usual", 3)
    assert not [*(tmp_path / "run" / "checkpoints").glob(".partial*")]


@pytest.mark.parametrize(
    "changes",
    [{}, {"shard": "full", "finetune": "full"}, {"shard": "full", "lora": LoraConfig(rank=4, alpha=8)}],
    ids=["whole", "shared, full", "shared, lora"],
)
def test_two_processes_save_behind(changes: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    """One of them is slow to write; the checkpoint is in place when both have written."""
    config = small(tiny_folder, tmp_path / "background", background_saving=True, **ONE, **changes)
    usual = replace(config, out=str(tmp_path / "usual"), background_saving=False)
    ranks.together(2, slow_saves.slow_on_one, config)
    ranks.together(2, run, usual)
    assert_same_run(tmp_path / "background", tmp_path / "usual", 3)
    for iteration in range(4):
        own, other = (checkpoint.folder_of(tmp_path / name, iteration) for name in ("background", "usual"))
        assert checkpoint.damage(own) is None
        assert contents(own) == contents(other)


def test_what_one_rank_cannot_write_ends_all(tiny_folder: Path, tmp_path: Path) -> None:
    config = small(tiny_folder, tmp_path / "run", background_saving=True, shard="full", iterations=6)
    assert ranks.end(ranks.start(2, slow_saves.fails_on_one, config)) == [1, 1]
    assert "No space left on device" in (tmp_path / "run" / "failure.txt").read_text()
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert checkpoint.damage(found) is None
    assert checkpoint.iteration_of(found) in (2, 3), "saved in the foreground, where the failure was noticed"
    assert not [*(tmp_path / "run" / "checkpoints").glob(".partial*")]
