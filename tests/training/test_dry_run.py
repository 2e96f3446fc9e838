"""A dry run goes through every part of a config at the smallest size, and leaves nothing behind."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import small, write_pictures

from dgpo import AWM, DGPO, FlowGRPO, Sampling, UserError
from dgpo.commands.main import main
from dgpo.config import Config, save_yaml
from dgpo.data.prompts import load_prompts
from dgpo.training.dry_run import dry_run, smallest
from dgpo.training.geometry import geometry

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir()), "a dry run removes its folder"


def config_of(model: Path, tmp_path: Path, **changes: Any) -> Config:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a cat number {i}\n" for i in range(40)))
    base = small(model, tmp_path / "run", rewards={"runs:colour": 1.0}, num_groups=8, group_size=6, iterations=500)
    base = replace(base, prompts=str(prompts), eval_prompts={"seen": str(prompts)}, eval_every=50, trackers=("wandb",))
    return replace(base, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"free_text_encoders": True, "vae_slicing": True, "gradient_checkpointing": True},
        {"algorithm": FlowGRPO(window=2), "sampling": Sampling(num_inference_steps=8, guidance_scale=2.0)},
        {"algorithm": AWM(), "finetune": "full", "updates_per_rollout": 3, "split_updates": True, "dtype": "bf16"},
        {"train_images": 4, "text_dropout": 0.5, "drop_equal_groups": True, "redraw_groups": 1},
    ],
)
def test_configs_of_all_kinds_are_gone_through(tiny_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    found = dry_run(config_of(tiny_folder, tmp_path, **changes))
    assert found[0].startswith("all 40 prompts read, 40 of seen")
    assert any("images sampled in" in line for line in found)
    assert any(line.startswith("evaluated: seen/colour") or "seen/runs:colour" in line for line in found)
    assert any("checkpoint written, verified and loaded" in line for line in found)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dataset_is_gone_through(tiny_folder: Path, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "pictures")
    found = dry_run(config_of(tiny_folder, tmp_path, offline=str(data)))
    assert found[0].startswith(f"the dataset {data} read")


def test_it_is_as_small_as_the_settings_take(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of(tiny_folder, tmp_path)
    grid = replace(config, algorithm=DGPO(trunc_steps=6), sampling=Sampling(num_inference_steps=40))
    prompts = load_prompts(str(config.prompts))
    least = smallest(grid, tmp_path, prompts, {"seen": prompts})
    assert (least.num_groups, least.group_size, least.sampling.num_inference_steps) == (2, 2, 7)
    assert (least.iterations, least.trackers) == (1, ())
    assert least.algorithm == grid.algorithm
    assert len(load_prompts(least.eval_prompts["seen"])) == 2


def test_what_would_stop_the_run_stops_the_dry_run(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UserError, match="unknown reward 'colors'"):
        dry_run(config_of(tiny_folder, tmp_path, rewards={"colors": 1.0}))
    save_yaml(config_of(tiny_folder, tmp_path, rewards={f"{__name__}:broken": 1.0}), tmp_path / "mine.yaml")
    assert main(["train", str(tmp_path / "mine.yaml"), "--dry-run"]) == 1
    assert "raised ZeroDivisionError" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "mine.yaml"), "--dry-run", "--rewards", "runs:colour=1"]) == 0
    assert "Dry run done" in capsys.readouterr().out


def broken(images: Any, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    raise ZeroDivisionError


def test_every_tag_that_a_reward_is_for_is_gone_through(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"a cat number {i}", "tag": f"kind {i // 10}"} for i in range(40)]
    (tmp_path / "tagged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(tiny_folder, tmp_path, prompts=str(tmp_path / "tagged.jsonl"))
    config = replace(config, reward_tags={"runs:colour": tuple(f"kind {i}" for i in range(4))})
    small = smallest(config, tmp_path, load_prompts(config.prompts), {})
    assert [row["tag"] for row in load_prompts(small.prompts).metadata] == [f"kind {i}" for i in range(4)]
    assert small.num_groups == 4


def test_a_dry_run_is_for_one_process(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match="start it without torchrun"):
        dry_run(config_of(tiny_folder, tmp_path))


@pytest.mark.parametrize(
    ("changes", "splits", "micro_batches"),
    [
        ({}, False, 1),
        ({"micro_batch_size": 48}, False, 1),
        ({"micro_batch_size": 13}, False, 2),
        ({"micro_batch_size": 5}, True, 4),
        ({"train_images": 4, "micro_batch_size": 5}, False, 2),
    ],
)
def test_groups_are_cut_as_the_run_cuts_them(
    changes: dict[str, Any], splits: bool, micro_batches: int, tiny_folder: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_folder, tmp_path, **changes)
    g = geometry(smallest(config, tmp_path, load_prompts(str(config.prompts)), {}), 1)
    assert (g.splits, g.micro_batches) == (geometry(config, 1).splits, micro_batches)
    assert (g.micro_batches > 1) == (geometry(config, 1).micro_batches > 1)


def test_an_update_that_was_not_tried_is_not_said_to_be_fine(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of(tiny_folder, tmp_path, rewards={f"{__name__}:equal": 1.0}, drop_equal_groups=True)
    found = dry_run(config)
    assert "no update by DGPO was tried: the few images of each prompt earned the same, and then none trains" in found
    assert not any("gradient finite" in line for line in found)


def equal(images: Any, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    return [1.0] * len(prompts)
