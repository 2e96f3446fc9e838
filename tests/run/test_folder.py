"""A run's folder is made once, and reopened only by what can continue it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgpo import __version__
from dgpo.config import MAY_CHANGE, Config, Human, Optimizer, Sampling, load_yaml
from dgpo.errors import UserError
from dgpo.run import checkpoint
from dgpo.run import folder as runfolder

WATCHED = {"rewards": {"shapes": 1.0}, "eval_prompts": {"seen": "shapes:seen"}, "eval_rewards": ("crispness",)}


def create(config: Config) -> tuple[Path, Config]:
    """A new run, whose process has ended."""
    with runfolder.created(config) as made:
        return made


def reopen(run: Path, config: Config | None = None) -> tuple[Path, Config]:
    """A run that goes on, whose process has ended."""
    with runfolder.reopened(run, config) as opened:
        runfolder.write_config(*opened)
        return opened


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 10 iterations with a checkpoint after the fourth."""
    folder, _ = create(Config(out=str(tmp_path / "run"), iterations=10, **WATCHED))
    checkpoint.save(folder, 4, {"policy": {"w": torch.zeros(1)}}, {})
    return folder


def test_a_new_folder_says_what_the_run_is(tmp_path: Path) -> None:
    folder, config = create(Config(out=str(tmp_path / "a" / "b"), seed=3))
    assert folder == tmp_path / "a" / "b"
    assert load_yaml(folder / "config.yaml") == config
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["dgpo"] == __version__
    assert {"torch", "diffusers", "python", "machine", "git", "command"} <= environment.keys()


def test_without_out_a_run_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [create(Config(name="try")) for _ in range(3)]
    assert [str(folder) for folder, _ in folders] == ["runs/try", "runs/try-2", "runs/try-3"]
    assert [config.out for _, config in folders] == ["runs/try", "runs/try-2", "runs/try-3"]


def test_an_empty_folder_may_be_used_and_a_used_one_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    create(Config(out=str(tmp_path / "empty")))
    before = contents(tmp_path / "empty")
    with pytest.raises(UserError, match=r"already holds something.*--out.*--resume"):
        create(Config(out=str(tmp_path / "empty"), seed=1))
    assert contents(tmp_path / "empty") == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="already holds something"):
        create(Config(out=str(tmp_path / "file")))


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the run folder"):
        create(Config(out=str(tmp_path / "file" / "run")))


def test_a_reopened_run_takes_over_what_may_change(run: Path) -> None:
    changes = {
        "iterations": 20,
        "stop_on_alarm": True,
        "report": False,
        "eval_every": 3,
        "checkpoint_every": 4,
        "background_saving": True,
        "keep_checkpoints": 5,
        "grace_seconds": 120.0,
        "rank_timeout_minutes": 5.0,
        "trackers": ("tensorboard",),
        "num_samples": 6,
        "max_minutes": 5.0,
        "compile": True,
        "license": "apache-2.0",
        "push_to_hub": "me/model",
        "hub_private": False,
        "device": "cpu",
        "reward_failures": {"shapes": "retry(2, 1)"},
        "micro_batch_size": 4,
        "gradient_checkpointing": True,
        "offload": "parts",
        "averages": "host",
        "shard": "none",  # full and compile exclude each other
        "vae_slicing": True,
    }
    nested = {"sampling.batch_size": Sampling(batch_size=7)}
    human = {"ahead": 3, "reuse": 4, "blind_every": 5, "repeat_every": 6, "share_every": 7}
    nested |= {f"human.{name}": Human(**human) for name in human}
    assert {*changes, *nested, "out"} == {*MAY_CHANGE}
    changes |= {"sampling": nested["sampling.batch_size"], "human": nested["human.ahead"]}
    folder, config = reopen(run, replace(load_yaml(run / "config.yaml"), **changes))
    assert folder == run
    assert config == load_yaml(run / "config.yaml") == Config(out=str(run), **WATCHED, **changes)
    assert reopen(run) == (run, config)


def test_a_run_that_was_moved_goes_on_where_it_is(run: Path) -> None:
    moved = run.rename(run.with_name("moved"))
    _, config = reopen(moved)
    assert config.out == str(moved) == load_yaml(moved / "config.yaml").out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "other values of seed;"),
        ({"group_size": 4, "optimizer": Optimizer(lr=1.0)}, r"other values of group_size, optimizer\.lr; .*iterations"),
        ({"iterations": 3}, r"iterations=3 is less than .* has finished \(iteration-000004\)"),
    ],
)
def test_a_changed_run_is_refused_and_left_as_it_was(run: Path, changes: dict, message: str) -> None:
    before = contents(run)
    with pytest.raises(UserError, match=message):
        reopen(run, replace(load_yaml(run / "config.yaml"), **changes))
    assert contents(run) == before


def test_what_is_no_run_to_resume(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run folder: it has no config\.yaml"):
        reopen(tmp_path / "none")
    fresh, config = create(Config(out=str(tmp_path / "fresh")))
    assert reopen(fresh) == (fresh, config), "killed before its first checkpoint: it has a beginning to go on from"
    (fresh / "metrics.jsonl").write_text('{"iteration": 1}\n')
    with pytest.raises(UserError, match="holds no checkpoint to resume from"):
        reopen(fresh)


def test_a_run_that_was_ended_at_its_start_begins_again(tmp_path: Path) -> None:
    config = Config(out=str(tmp_path / "run"))
    create(config)
    assert create(config)[0] == tmp_path / "run"
    (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / "config.yaml.part").write_text("see")
    assert create(config)[0] == tmp_path / "run"
    with pytest.raises(UserError, match="already holds something"):
        create(replace(config, seed=1))
    (tmp_path / "run" / "checkpoints" / ".partial-iteration-000000").mkdir(parents=True)
    create(config)
    checkpoint.save(tmp_path / "run", 0, {"policy": {"w": torch.zeros(1)}}, {})
    with pytest.raises(UserError, match="already holds something"):
        create(config)


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints", "metrics.jsonl", "notes.txt"])
def test_what_others_have_put_into_a_folder_is_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        create(Config(out=str(tmp_path)))
    assert contents(tmp_path) == {name: b"mine"}


def test_two_runs_that_start_at_once_get_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with runfolder.created(Config(name="try")) as (one, _), runfolder.created(Config(name="try")) as (other, _):
        assert (str(one), str(other)) == ("runs/try", "runs/try-2")


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\\b", "..", ".", "", "/tmp/x", "a\0"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(UserError, match=r"name=.* it becomes a folder of runs/"):
        Config(name=name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"dgpo": "0.0.1"}', r"was written by dgpo 0\.0\.1, this is .*Resume it with dgpo 0\.0\.1"),
        ('{"torch": "2"}', "does not say which dgpo"),
        ("[]", "does not say which dgpo"),
        ("{", "does not say which dgpo"),
        (None, "does not say which dgpo"),
    ],
)
def test_a_run_of_another_version_is_refused(run: Path, text: str | None, message: str) -> None:
    path = run / "environment.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        reopen(run)


def test_a_patch_release_may_go_on(run: Path) -> None:
    major, minor, _ = __version__.split(".")
    (run / "environment.json").write_text(f'{{"dgpo": "{major}.{minor}.99"}}')
    reopen(run)
