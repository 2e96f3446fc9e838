"""Run folders that people teach, made up: groups are drawn from formulas, and nothing trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from synthetic import ENVIRONMENT, draw

from dgpo.config import Human, save_yaml
from dgpo.recipes import recipe
from dgpo.teach.groups import BLIND, TRAIN, Group, Groups, sha256
from dgpo.teach.learned import Update, Updates
from dgpo.utils.pictures import to_png

NEVER = Human(ahead=4, reuse=2, blind_every=0, repeat_every=0, share_every=0)
"""Nobody gets a group twice."""


def taught(folder: Path, groups: int = 0, size: int = 4, human: Human = NEVER, **config: Any) -> Path:
    """A run of 10 updates, each after 3 answers, none of which is done."""
    folder.mkdir(parents=True)
    base = replace(recipe("tiny"), drop_equal_groups=False, redraw_groups=0, train_images=None)
    fields = {"rewards": {"human": 1.0}, "eval_rewards": (), "num_groups": 3, "group_size": size, "iterations": 10}
    save_yaml(replace(base, **{**fields, "human": human, "out": str(folder), **config}), folder / "config.yaml")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "metrics.jsonl").write_text("")
    for _ in range(groups):
        grouped(folder, size)
    return folder


def grouped(
    folder: Path, size: int = 4, prompt: str | None = None, kind: str = TRAIN, now: int = 1, latents: bool = True
) -> int:
    """Another group, and its number."""
    known = Groups(folder)
    number = known.last_number() + 1
    size = 2 if kind == BLIND else size
    pictures = [to_png(draw((number + i) % 16, i / size)) for i in range(size)]
    group = Group(
        number=number,
        kind=kind,  # pyright: ignore[reportArgumentType]
        prompt=prompt or f"prompt of group {number}",
        iteration=0,
        images=tuple(map(sha256, pictures)),
        now=now if kind == BLIND else None,
    )
    known.add(group, pictures, torch.zeros(size, 4, 8, 8) if latents and kind == TRAIN else None)
    return number


def learned(folder: Path, iteration: int, new: list[int], earlier: list[int] | None = None, done: bool = True) -> None:
    """An update, and where it is done its row."""
    Updates(folder).add(Update(iteration - 1, tuple(new), tuple(earlier or [])))
    if done:
        row = {"iteration": iteration, "train/score/human": 0.25, "time/update": 3.0, "time/elapsed": 9.0}
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
