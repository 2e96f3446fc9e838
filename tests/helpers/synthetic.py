"""A run folder made up from a few formulas, for the report's tests and for looking at a page without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from dgpo.report.grids import write_samples

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "iterations": 60,
    "num_groups": 12,
    "group_size": 12,
    "seed": 0,
    "model": "tiny-sd3",
    "lora": {"rank": 32, "alpha": 64},
    "algorithm": {"name": "dgpo", "beta": 100.0, "clip_range": 0.01, "kl_coef": 0.02},
    "optimizer": {"lr": 3e-4, "betas": [0.9, 0.999]},
    "rewards": {"shapes": 1.0},
    "eval_rewards": ["crispness", "diversity", "drift"],
}
ENVIRONMENT = {
    "versions": {"python": "3.11.9", "torch": "2.13.0"},
    "git": {"commit": "0a1b2c3"},
    "machine": {"cpus": 2},
}
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = {"red": (0.86, 0.2, 0.18), "blue": (0.15, 0.4, 0.86), "green": (0.15, 0.6, 0.3), "purple": (0.5, 0.25, 0.7)}
SHAPES = ("circle", "square", "triangle", "diamond")
PROMPTS = [f"a {colour} {shape} on a pale background" for shape in SHAPES for colour in COLOURS]


def make_run(
    folder: Path, iterations: int = 60, eval_every: int = 10, gain: float = 0.4, pictures: bool = True
) -> Path:
    """Write a whole run folder; `gain` is what its scores rise by (negative: fall)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    rng = np.random.default_rng(0)
    rows = [_eval_row(rng, 0, 0.0, gain)]
    for i in range(1, iterations + 1):
        rows.append(_train_row(rng, i, 1 - np.exp(-2.5 * i / iterations), gain))
        if eval_every and i % eval_every == 0:
            rows.append(_eval_row(rng, i, 1 - np.exp(-2.5 * i / iterations), gain))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if pictures:
        for iteration, share in ((0, 0.4), (iterations, 0.9)):
            write_samples(folder, iteration, torch.stack([draw(i, share) for i in range(len(PROMPTS))]), PROMPTS)
    return folder


def draw(index: int, share_right: float) -> Tensor:
    """(3, 64, 64): prompt `index`'s shape, in a wrong colour where the prompt's hash falls above `share_right`."""
    names = list(COLOURS)
    right = index * 7 % 16 < 16 * share_right
    colour = torch.tensor(COLOURS[names[index % 4 if right else (index + 1) % 4]])
    y, x = torch.meshgrid(*2 * [torch.arange(64.0)], indexing="ij")
    x, y, size = x - 20 - index * 5 % 24, y - 22 - index * 3 % 20, 12.0
    inside = {
        "circle": x**2 + y**2 < size**2,
        "square": torch.maximum(x.abs(), y.abs()) < size * 0.85,
        "triangle": (y < size) & (y > 2 * x.abs() - size),
        "diamond": x.abs() + y.abs() < size * 1.2,
    }[SHAPES[index // 4]]
    return torch.where(inside, colour[:, None, None], torch.tensor((0.95, 0.94, 0.88))[:, None, None])


def _train_row(rng: np.random.Generator, i: int, learned: float, gain: float) -> dict[str, float]:
    reward = 0.5 + abs(gain) * learned + 0.03 * rng.normal()
    row = {
        "iteration": i,
        "train/reward_mean": reward,
        "train/reward_std": 0.3 - 0.1 * learned + 0.01 * rng.normal(),
        "train/frac_reward_zero_std": float(np.clip(0.05 + 0.3 * learned + 0.05 * rng.normal(), 0, 1)),
        "train/loss": 0.02 * rng.normal(),
        "train/kl": 0.01 * learned + 0.001 * rng.random(),
        "train/clip_fraction": 0.08 + 0.1 * learned + 0.03 * rng.random(),
        "train/grad_norm": 0.6 + 0.15 * rng.normal(),
        "train/score/shapes": reward,
        "time/rollout": 4.1 + 0.1 * rng.normal(),
        "time/reward": 0.4,
        "time/update": 7.9 + 0.1 * rng.normal(),
        "time/iteration": 12.6,
        "time/elapsed": 14.0 * i + 20,
        "train/forwards": 1200 * i,
    }
    return row | ({"train/grad_noise_scale": 70 * float(np.exp(0.6 * rng.normal()))} if i % 3 == 0 else {})


def _eval_row(rng: np.random.Generator, i: int, learned: float, gain: float) -> dict[str, float]:
    row: dict[str, float] = {
        "iteration": i,
        "time/elapsed": 14.0 * i + 20,
        "time/eval": 9.0,
        "train/forwards": 1200 * i,
    }
    for name, base, share in (("seen", 0.5, 1.0), ("unseen", 0.42, 0.7)):
        tasks = [float(np.clip(base + d + share * gain * learned, 0, 1)) for d in (0.3, 0.1, -0.15, 0.2, -0.2, -0.1)]
        scores = {"shapes": np.mean(tasks) + 0.15, "shapes_strict": np.mean(tasks)}
        held_out = {
            "crispness": 0.93 - 0.02 * learned,
            "diversity": 0.61 - 0.12 * learned * share,
            "drift": 0.02 + 0.003 * learned,
        }
        row |= {f"eval/{name}/{key}": float(v) + 0.005 * rng.normal() for key, v in scores.items()}
        row |= {f"eval/{name}/shapes_strict/{tag}": v for tag, v in zip(TAGS, tasks)}
        row |= {f"eval/{name}/{key}": float(v) for key, v in held_out.items()} | {
            f"eval/{name}/shapes_strict/stderr": 0.02
        }
        if i:
            row |= {f"eval/{name}/crispness/change_low": -0.03, f"eval/{name}/crispness/change_high": 0.01}
    return row
