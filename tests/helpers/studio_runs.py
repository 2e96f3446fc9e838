"""Run folders for the tests of the studio: made up, and one that seems to be trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from starlette.testclient import TestClient
from synthetic import PROMPTS, draw, make_run

from dgpo.report.grids import write_samples
from dgpo.run import lock

SCRIPT = "<script>alert(1)<script>"
"""A name that a page must show as it is."""


def listed(web: TestClient) -> dict[str, dict[str, Any]]:
    """name -> what the studio's list says of the run, once it has read every run."""
    runs, answer = {}, {"now": "", "unread": 1}
    while answer["unread"]:
        answer = web.get(f"/api/runs?since={answer['now']}").json()
        runs |= {run["name"]: run for run in answer["runs"]}
    return runs


def made(folder: Path, iterations: int = 60, pictures: bool = True, **config: Any) -> Path:
    """A run of 60 iterations, of which so many are done."""
    make_run(folder, iterations, pictures=pictures)
    changed = yaml.safe_load((folder / "config.yaml").read_text()) | config
    (folder / "config.yaml").write_text(yaml.safe_dump(changed))
    return folder


def evaluated(folder: Path, iteration: int, prompts: list[str] = PROMPTS) -> None:
    """Another evaluation's pictures, with scores."""
    share = 0.4 + iteration / 120
    images = torch.stack([draw(i % 16, share) for i in range(len(prompts))])
    right = torch.tensor([float(i * 7 % 16 < 16 * share) for i in range(len(prompts))])
    write_samples(folder, iteration, images, prompts, {"shapes_strict": right, "reward": right})


def failed(folder: Path) -> Path:
    """A run that a reward ended, with the picture and the prompt on which it did."""
    made(folder, iterations=20)
    (folder / "failure.txt").write_text("the run failed after iteration 20: the reward 'clip' raised ValueError: no.\n")
    place = folder / "failures"
    place.mkdir()
    shutil.copy(folder / "samples/iteration-000000/003.png", place / "clip-00003.png")
    note = {"reward": "clip", "prompt": "<b>a cat</b>", "metadata": {}}
    (place / "clip-00003.json").write_text(json.dumps(note))
    (place / "clip-00003.txt").write_text("Traceback\nValueError: no\n")
    return folder


@contextmanager
def training(folder: Path) -> Iterator[Path]:
    """While the block works this process holds the run, as training does."""
    with lock.held(folder):
        yield folder


def log(folder: Path, iteration: int, reward: float = 0.9) -> None:
    """One iteration more."""
    row = {
        "iteration": iteration,
        "train/reward_mean": reward,
        "time/iteration": 12.6,
        "time/elapsed": 14.0 * iteration,
    }
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
