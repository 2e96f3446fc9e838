"""An old run is moved aside whole, and nothing else ever is."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import run, small

from dgpo import UserError
from dgpo.commands.main import main
from dgpo.config import Config, LoraConfig, load_yaml
from dgpo.run import checkpoint, lock
from dgpo.run import folder as runfolder


def begin(config: Config, overwrite: bool = True) -> Path:
    """A new run with a checkpoint, whose process has ended."""
    with runfolder.created(config, overwrite) as (folder, _):
        checkpoint.save(folder, 1, {"policy": {"w": torch.zeros(1)}}, {})
        return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_old_runs_are_moved_to_the_next_free_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "warm"
    begin(Config(out=str(place), seed=1))
    first = contents(place)
    (tmp_path / "warm-2").mkdir()
    begin(Config(out=str(place), seed=2))
    assert "".join(capsys.readouterr().out.split()) == f"movedtheoldrun{place}to{place}-1"
    begin(Config(out=str(place), seed=3))
    assert contents(tmp_path / "warm-1") == first
    seeds = {name: load_yaml(tmp_path / name / "config.yaml").seed for name in ("warm", "warm-1", "warm-3")}
    assert seeds == {"warm": 3, "warm-1": 1, "warm-3": 2}
    assert not any((tmp_path / "warm-2").iterdir())


def test_without_out_the_folder_has_the_runs_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [str(begin(Config(name="try"))) for _ in range(2)] == ["runs/try", "runs/try"]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["try", "try-1"]
    assert "moved the old run runs/try to runs/try-1\n" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["new", "empty"])
def test_where_nothing_is_nothing_is_moved(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    begin(Config(out=str(tmp_path / place)))
    assert {path.name for path in tmp_path.iterdir()} == {"empty", place}


def test_a_run_of_another_version_is_moved_too(tmp_path: Path) -> None:
    begin(Config(out=str(tmp_path / "run")))
    (tmp_path / "run" / "environment.json").write_text('{"dgpo": "0.0.1"}')
    (tmp_path / "run" / "config.yaml").write_text("a_field_of_old: 1")
    begin(Config(out=str(tmp_path / "run"), seed=1))
    assert (tmp_path / "run-1" / "config.yaml").read_text() == "a_field_of_old: 1"


@pytest.mark.parametrize("files", [["notes.txt"], ["config.yaml"], ["config.yaml", "environment.json"]])
def test_what_is_no_run_stays(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "mine").mkdir()
    for name in files:
        (tmp_path / "mine" / name).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"mine is no run: .*choose another --out"):
        begin(Config(out=str(tmp_path / "mine")))
    with pytest.raises(UserError, match=r"already holds something, and it is no run\. Choose another --out$"):
        begin(Config(out=str(tmp_path / "mine")), overwrite=False)
    assert contents(tmp_path) == before


def test_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is no run"):
        begin(Config(out=str(tmp_path / "file")))
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_run_in_progress_stays(tmp_path: Path) -> None:
    begin(Config(out=str(tmp_path / "run")))
    with lock.held(tmp_path / "run"):
        before = contents(tmp_path)
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()}"):
            begin(Config(out=str(tmp_path / "run"), seed=1))
        assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_lock_of_a_folder_that_was_moved_at_this_moment_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, place = lock._take, tmp_path / "run"
    place.mkdir()

    def moved_before(handle: int, run: Path) -> None:
        run.rename(tmp_path / "run-1")
        take(handle, run)

    monkeypatch.setattr(lock, "_take", moved_before)
    with pytest.raises(UserError, match="was moved aside by another process"):
        lock.held(place).__enter__()


def test_what_the_new_run_reads_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "run"
    begin(Config(out=str(place)))
    inside = place / "checkpoints"
    config = Config(out=str(place), seed=1)
    for needs in (
        replace(config, lora=LoraConfig(start=str(inside))),
        replace(config, model=str(inside)),
        replace(config, offline=str(inside)),
        replace(config, prompts=str(place / "config.yaml")),
        replace(config, prompts=f"hf:{place / 'config.yaml'}:train:text"),
        replace(config, prompts=("shapes:train", f"hf:{place / 'config.yaml'}")),
        replace(config, eval_prompts={"x": str(place / "config.yaml")}),
    ):
        with pytest.raises(UserError, match=rf"the new run needs {re.escape(str(place))}/.*, which lies in it"):
            begin(needs)
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match="which lies in it"):
        begin(replace(config, out="."))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_cannot_be_renamed_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    begin(Config(out=str(tmp_path / "run")))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot move the old run .*link.* Move it yourself"):
        begin(Config(out=str(tmp_path / "link"), seed=1))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "link"}


@pytest.mark.slow
def test_a_whole_run_takes_the_place_of_another_which_stays_as_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    config = small(tiny_folder, place, iterations=1)
    run(config)
    before = contents(place)
    with pytest.raises(
        UserError, match=r"continue it with --resume .*--overwrite \(overwrite=True in Python\).* run-1"
    ):
        run(config)
    with pytest.raises(UserError, match="resume continues the run in the folder, and overwrite moves it"):
        run(config, resume=True, overwrite=True)
    assert contents(place) == before
    run(replace(config, seed=1), overwrite=True)
    assert contents(tmp_path / "run-1") == before
    assert load_yaml(place / "config.yaml").seed == 1
    assert run(replace(config, iterations=2, out=str(tmp_path / "run-1")), resume=True).iterations == 2


def test_the_flag_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def record(config: Config, resume: bool, overwrite: bool) -> None:
        seen.append(overwrite)
        raise KeyboardInterrupt

    monkeypatch.setattr("dgpo.training.loop.train", record)
    assert [
        main(["train"]),
        main(["train", "--overwrite"]),
        main(["train", "words", "--seed", "1", "--overwrite"]),
    ] == [130] * 3
    assert seen == [False, True, True]
