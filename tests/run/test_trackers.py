"""The metrics file survives kills and resumes without losing a row; the dashboards get the same rows, offline."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo.errors import UserError
from dgpo.run.trackers import JsonlTracker, NullTracker, TrackerGroup, make_trackers, read_metrics

OWN = """
import json

class Mine:
    def __init__(self, run_dir, config, resumed_at):
        self.file = open(run_dir / "mine.txt", "a")
        print("begun", config["seed"], resumed_at, file=self.file)

    def log(self, iteration, metrics):
        print(iteration, metrics, file=self.file)

    def images(self, iteration, name, path):
        print(iteration, name, path.name, file=self.file)

    def close(self):
        self.file.close()

class Half:
    def log(self, iteration, metrics): ...

def function(run_dir, config, resumed_at): ...
"""


def test_a_tracker_of_ones_own_gets_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_trackers.py").write_text(OWN)
    for resumed_at in (None, 1):
        tracker = make_trackers(["own_trackers:Mine"], tmp_path, {"seed": 7}, resumed_at)
        tracker.log(1, {"x": 0.5})
        tracker.images(1, "samples", Path("samples/1.png"))
        tracker.close()
    assert Path("mine.txt").read_text().splitlines() == [
        *("begun 7 None", "1 {'x': 0.5}", "1 samples 1.png", "begun 7 1", "1 {'x': 0.5}", "1 samples 1.png")
    ]
    with pytest.raises(UserError, match=r"'own_trackers:Half' is no class with .* it lacks images, close"):
        make_trackers(["own_trackers:Half"], tmp_path, {})
    with pytest.raises(UserError, match=r"'own_trackers:function' is no class with log"):
        make_trackers(["own_trackers:function"], tmp_path, {})
    with pytest.raises(UserError, match=r"tracker 'own_trackers:Nine': module own_trackers has no 'Nine'"):
        make_trackers(["own_trackers:Nine"], tmp_path, {})
    with pytest.raises(UserError, match=r"unknown tracker 'own_trackers\.Mine'.* own is given as own_trackers:Mine"):
        make_trackers(["own_trackers.Mine"], tmp_path, {})


def test_rows_are_written_at_once_with_the_iteration_first(tmp_path):
    tracker = JsonlTracker(tmp_path / "run")
    tracker.log(3, {"train/reward": 0.5, "train/images": 8})
    row: dict[str, Any] = {"eval/reward": torch.tensor(0.25), "loss": math.nan, "low": -math.inf}
    tracker.log(3, row)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text == (
        '{"iteration": 3, "train/reward": 0.5, "train/images": 8}\n'
        '{"iteration": 3, "eval/reward": 0.25, "loss": null, "low": null}\n'
    )
    assert read_metrics(tracker.path) == [json.loads(line) for line in text.splitlines()]
    tracker.close()


def test_rewind_moves_later_rows_and_loses_none(tmp_path):
    tracker = JsonlTracker(tmp_path)
    for iteration in range(4):
        tracker.log(iteration, {"x": iteration})
        tracker.log(iteration, {"y": iteration})
    tracker.rewind(1)
    tracker.log(2, {"x": 20})
    tracker.rewind(1)
    tracker.log(2, {"x": 200})
    kept = [(row["iteration"], row.get("x"), row.get("y")) for row in read_metrics(tracker.path)]
    assert kept == [(0, 0, None), (0, None, 0), (1, 1, None), (1, None, 1), (2, 200, None)]
    discarded = read_metrics(tmp_path / "metrics.discarded.jsonl")
    assert [row.get("x") for row in discarded] == [2, None, 3, None, 20]
    tracker.close()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_half_written_last_line_is_tolerated_and_mended(tmp_path, cut):
    file = tmp_path / "metrics.jsonl"
    whole, last = '{"iteration": 0, "x": 1}\n', '{"iteration": 1, "x": 2}\n'
    file.write_text(whole + last[:-cut])
    expected = [{"iteration": 0, "x": 1}] + ([{"iteration": 1, "x": 2}] if cut == 1 else [])
    assert read_metrics(file) == expected
    tracker = JsonlTracker(tmp_path)
    tracker.log(2, {"x": 3})
    tracker.close()
    assert read_metrics(file) == [*expected, {"iteration": 2, "x": 3}]
    assert (tmp_path / "metrics.discarded.jsonl").exists() == (cut > 1)


def test_a_broken_line_elsewhere_is_an_error(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"iteration": 0}\n{"iterat\n{"iteration": 2}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics\.jsonl"):
        read_metrics(file)
    with pytest.raises(UserError, match="cannot read the metrics"):
        read_metrics(tmp_path / "nothing.jsonl")


def test_make_trackers_resumes_the_metrics_file(tmp_path):
    for resumed_at, iterations in ((None, (0, 1, 2)), (1, (2, 3))):
        trackers = make_trackers(["jsonl"], tmp_path, {}, resumed_at=resumed_at)
        for iteration in iterations:
            trackers.log(iteration, {"x": 1.0})
        trackers.close()
    assert [row["iteration"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_unknown_and_missing_trackers_write_nothing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"unknown tracker 'wandbb'.*Did you mean 'wandb'"):
        make_trackers(["wandbb"], tmp_path, {})
    for name in ("wandb", "tensorboard", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"pip install 'dgpo\[{name}\]'"):
            make_trackers([name], tmp_path, {})
    assert list(tmp_path.iterdir()) == []


class Spy(NullTracker):
    def __init__(self, fails=False):
        self.fails, self.calls = fails, []

    def log(self, iteration, metrics):
        self.calls.append((iteration, dict(metrics)))

    def close(self):
        self.calls.append("closed")
        if self.fails:
            raise OSError("no network")


def test_a_group_closes_every_tracker():
    spies = [Spy(), Spy(fails=True), Spy()]
    group = TrackerGroup(spies)
    group.log(1, {"x": 2.0})
    with pytest.raises(OSError, match="no network"):
        group.close()
    assert all(spy.calls == [(1, {"x": 2.0}), "closed"] for spy in spies)


CONFIG = {"seed": 0, "algorithm": {"beta": 10.0, "clip_range": None}}


def run_twice(name: str, run_dir: Path) -> None:
    """Iterations 0 to 2 with a picture, then a resume at 0 that logs iteration 1 again."""
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(run_dir / "grid.png")
    trackers = make_trackers([name], run_dir, CONFIG)
    for iteration in range(3):
        trackers.log(iteration, {"train/reward": 0.5 + iteration, "train/nan": math.nan})
    trackers.log(2, {"eval/reward": 0.125})
    trackers.images(2, "samples", run_dir / "grid.png")
    trackers.close()
    resumed = make_trackers([name], run_dir, CONFIG, resumed_at=0)
    resumed.log(1, {"train/reward": 7.0})
    resumed.close()


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_twice("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/reward")] == [(0, 0.5), (1, 7.0)]
    first = EventAccumulator(str(min((tmp_path / "tensorboard").iterdir())))
    first.Reload()
    assert [(image.step, image.width, image.height) for image in first.Images("samples")] == [(2, 6, 4)]
    assert "beta" in str(first.Tensors("config/text_summary"))


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_twice("wandb", tmp_path)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1, "a resumed run keeps its id"
    logs = b"".join(file.read_bytes() for file in files)
    assert all(word in logs for word in (b"train/reward", b"eval/reward", b"0.125", b"clip_range", b"samples"))


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    (tmp_path / "run").mkdir()
    run_twice("trackio", tmp_path / "run")
    stored = (tmp_path / "trackio" / "dgpo.db").read_bytes()
    assert b"train/reward" in stored
    assert b"clip_range" in stored
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 1
