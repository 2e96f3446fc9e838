"""What tests of several modules share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging
from transformers.utils import logging as transformers_logging

from dgpo.config import Config

logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)  # sums round otherwise with more: a bare `pytest` compares the same bits as `make test`


@pytest.fixture(autouse=True)
def users_modules_are_forgotten() -> Iterator[None]:
    """Tests of commands and docs write a my_rewards.py each: none may find another's."""
    yield
    sys.modules.pop("my_rewards", None)


@pytest.fixture
def would_train(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that `dgpo train` would run. It is interrupted before anything is, so it exits with 130."""
    seen: list[Config] = []

    def record(config: Config, **_: object) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("dgpo.training.loop.train", record)
    return seen


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny random pipeline that `load_model` reads in a moment."""
    from runs import save_pipeline

    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="session")
def finished_run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations, each evaluated and saved. Copy it before writing into it."""
    from runs import run, small

    folder = tmp_path_factory.mktemp("finished")
    prompts = folder / "prompts.txt"
    prompts.write_text("a red cat\na green cat\n")
    config = small(
        tiny_folder,
        folder / "run",
        iterations=2,
        rewards={"runs:colour": 1.0},
        eval_prompts={"seen": str(prompts), "unseen": str(prompts)},
        eval_images_per_prompt=1,
        eval_every=1,
        num_samples=1,
    )
    return run(config, reward_functions={}).run
