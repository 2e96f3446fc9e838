"""What is done with a run or a model outside of training: evaluate it, draw with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from dgpo import checkpoint
from dgpo.config import Config
from dgpo.core import seeds
from dgpo.data import load_prompts
from dgpo.errors import UserError
from dgpo.evaluate import evaluate
from dgpo.models import VelocityModel, load_model
from dgpo.report.grids import sample_grid
from dgpo.rewards.combine import RewardSet
from dgpo.rollout import CondCache, decode, grid, sample


def load_trained(source: str, config: Config) -> tuple[VelocityModel, str]:
    """A run's model with the averaged weights of its best checkpoint (newest, where none was evaluated), or a model.

    Returns the model, whose weight set "ema" holds them, and a line that says which weights these are.
    """
    model = load_model(
        config.model, finetune=config.finetune, lora=config.lora, sets=("ref", "ema"), device=config.device, dtype=config.dtype,
        resolution=config.resolution, shift=config.sampling.shift,
    )  # fmt: skip
    if not (Path(source) / "config.yaml").is_file():
        return model, f"{config.model}, as pretrained"
    newest = checkpoint.latest(source)
    if newest is None:
        raise UserError(
            f"{source} holds no checkpoint yet; to look at the model it started from, name that: {config.model}"
        )
    _, state = checkpoint.load(newest)
    best = newest.with_name(f"iteration-{state['best_iteration']:06d}")
    chosen = best if best.is_dir() else newest
    model.weights.load("ema", checkpoint.load(chosen)[0]["ema"])
    return model, f"{chosen} ({'best' if chosen == best else 'newest'})"


def evaluate_source(source: str, config: Config) -> dict[str, float]:
    """Print a table of all scores on the config's evaluation sets, and return them."""
    if not config.eval_prompts:
        raise UserError("eval_prompts is empty: name a set, such as --eval-prompts seen shapes:seen")
    sets = {name: load_prompts(prompts) for name, prompts in config.eval_prompts.items()}
    reward = RewardSet(config.rewards, watched=config.eval_rewards)
    for prompts in sets.values():
        reward.check_metadata(prompts.metadata)
    model, which = load_trained(source, config)
    metrics = evaluate(model, CondCache(model), sets, reward, config).metrics
    table = Table("score", *sets, title=which)
    keys = list(dict.fromkeys(key.split("/", 2)[2] for key in metrics if not key.endswith("/stderr")))
    for key in keys:
        cells = (metrics.get(f"eval/{name}/{key}") for name in sets)
        errors = (metrics.get(f"eval/{name}/{key}/stderr") for name in sets)
        table.add_row(key, *(_cell(value, error) for value, error in zip(cells, errors)))
    Console().print(table)
    return metrics


def sample_source(source: str, config: Config, prompts: Sequence[str], images: int, out: Path) -> Path:
    """Draw `images` pictures of each prompt, one prompt a row, into a new PNG."""
    if out.exists():
        raise UserError(f"{out} exists and is not replaced; choose another --out")
    if images < 1 or not prompts:
        raise UserError("there is nothing to draw: give at least one --prompt and --images 1 or more")
    model, _ = load_trained(source, config)
    streams = [seeds.generator(config.seed, "sample", p, i) for p in range(len(prompts)) for i in range(images)]
    cond = model.encode(list(prompts)).repeat(images)
    sampling = config.sampling
    scale = sampling.guidance_scale if sampling.eval_guidance_scale is None else sampling.eval_guidance_scale
    x0 = sample(model, cond, streams, grid(model, sampling), sampling, scale, "ema")
    out.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        sample_grid(decode(model, x0, sampling.batch_size), images).save(out)
    return out


def _cell(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
