"""What is done with a run or a model outside of training: evaluate it, draw with it, collect groups to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from dgpo.config import Config
from dgpo.core import seeds
from dgpo.data.groups import Group, require_new, write_groups
from dgpo.data.own_prompts import evaluation_sets
from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.data.sampler import PromptSampler
from dgpo.errors import UserError, warn
from dgpo.models import VelocityModel
from dgpo.models.configured import load_configured
from dgpo.models.text_cache import CondCache
from dgpo.report.grids import sample_grid
from dgpo.rewards.base import RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.run import checkpoint
from dgpo.run.folder import environment
from dgpo.training.draw import Drawn, chunks, draw, for_evaluation, grid
from dgpo.training.evaluate import evaluate
from dgpo.training.setup import all_rewards, trained_rewards


def load_trained(source: str, config: Config) -> tuple[VelocityModel, str]:
    """A run's model with the averaged weights of its best checkpoint (newest, where none was evaluated), or a model.

    Returns the model, whose weight set "ema" holds them, and a line that says which weights these are. Its blocks are
    not compiled: what is drawn here is seldom worth the minutes.
    """
    best = _best_weights(source, config) if (Path(source) / "config.yaml").is_file() else None
    model = load_configured(replace(config, compile=False), ("ref", "ema"))
    if best is None:
        return model, f"{config.model}, as pretrained"
    weights, name = best
    model.weights.load("ema", weights)
    return model, name


def _best_weights(run: str, config: Config) -> tuple[dict[str, Tensor], str]:
    """`ema` of a run's best checkpoint, and the checkpoint's name."""
    newest = checkpoint.latest(run)
    if newest is None:
        raise UserError(
            f"{run} holds no checkpoint yet; to look at the model it started from, name that: {config.model}"
        )
    tensors, state = checkpoint.load(newest)
    best = newest.with_name(f"iteration-{state['best_iteration']:06d}")
    standing = "best, but held-out scores fell: see the report" if state.get("best_alarmed") else "best"
    if best == newest or not best.is_dir():
        return tensors["ema"], f"{newest} ({standing if best == newest else 'newest'})"
    return checkpoint.load(best)[0]["ema"], f"{best} ({standing})"


def evaluate_source(source: str, config: Config) -> dict[str, float]:
    """Print a table of all scores on the config's evaluation sets, and return them."""
    if not config.eval_prompts:
        raise UserError("eval_prompts is empty: name a set, such as --eval-prompts seen=shapes:seen")
    sets = evaluation_sets(config)
    reward = all_rewards(config)
    for name, prompts in sets.items():
        warn(f"{name}: {doubt}" for doubt in reward.check(prompts))
    model, which = load_trained(source, config)
    encode = CondCache(model, config.prompt_cache)
    if config.free_text_encoders:
        encode.know_all(text for prompts in sets.values() for text in prompts.prompts)
    metrics = evaluate(model, encode, sets, reward, config).metrics
    table = Table("score", *(Column(name, justify="right") for name in sets))
    told = [key for key in metrics if not key.endswith("/stderr")]
    for score in dict.fromkeys(key.split("/", 2)[2] for key in told):
        table.add_row(score, *(_cell(metrics, f"eval/{name}/{score}") for name in sets))
    out = Console(markup=False, emoji=False, highlight=False)
    out.print(which, soft_wrap=True)
    out.print(table)
    return metrics


def sample_source(source: str, config: Config, prompts: Sequence[str], images: int, out: Path) -> Path:
    """Draw `images` pictures of each prompt, one prompt a row, into a new PNG."""
    if images < 1 or not prompts:
        raise UserError("there is nothing to draw: give at least one --prompt and --images 1 or more")
    _require_new_png(out)
    model, _ = load_trained(source, config)
    streams = [seeds.generator(config.seed, "sample", p, i) for p in range(len(prompts)) for i in range(images)]
    cond = CondCache(model, config.prompt_cache)(list(prompts)).repeat(images)
    if config.free_text_encoders:
        model.free_encoders()
    drawn = Drawn.cat([*draw(model, cond, streams, for_evaluation(config.sampling), "ema")])
    sample_grid(drawn.images, images).save(out)
    return out


def collect_source(source: str, config: Config, number: int, folder: Path) -> str:
    """Draw and score `number` groups into a new dataset folder, and return a line that says what is in it."""
    if number < 1:
        raise UserError(f"--groups {number} would make an empty dataset; give at least 1")
    require_new(folder)
    prompts, reward = load_prompts(config.prompts), trained_rewards(config)
    warn(reward.check(prompts))
    model, which = load_trained(source, config)
    sampling = {**asdict(config.sampling), "sigmas": grid(model, config.sampling).tolist()}
    about = {
        "weights": which,
        "prompts": config.prompts,
        "rewards": config.rewards,
        "sampling": sampling,
        "seed": config.seed,
        "environment": environment(),
    }
    rewards: list[Tensor] = []

    def noted() -> Iterator[Group]:
        for group in scored_groups(model, prompts, reward, config, number):
            rewards.append(group.rewards)
            yield group
        if not rewards:
            raise RewardError("no group has two images with a reward: the rewards failed, and their policy drops those")

    write_groups(folder, noted(), model.latent_space, about)
    mean, std = torch.cat(rewards).mean(), torch.stack([r.std(correction=0) for r in rewards]).mean()
    size = config.group_size
    return f"{folder}: {len(rewards)} groups of {size} images, mean reward {mean:.3f}, within a group ± {std:.3f}"


def scored_groups(
    model: VelocityModel, prompts: PromptSet, reward: RewardSet, config: Config, number: int
) -> Iterator[Group]:
    """`number` groups in the order of a run's prompts, by the weights "ema"; as many at a time as fill a batch.

    Without images that a reward dropped, and groups of which it left fewer than two. Every group has the same scores,
    so those that are for some prompts only are not among them.
    """
    size, sampling, encode = config.group_size, config.sampling, CondCache(model, config.prompt_cache)
    index = PromptSampler(len(prompts), config.seed).next(number)
    if config.free_text_encoders:
        encode.know_all(prompts.subset(index).prompts)
    for groups in chunks(number, max(1, sampling.batch_size // size)):
        batch = prompts.subset(i for i in index[groups] for _ in range(size))
        streams = [seeds.generator(config.seed, "collect", g, i) for g in range(number)[groups] for i in range(size)]
        x0, images, _ = Drawn.cat([*draw(model, encode(batch.prompts), streams, sampling, "ema")])
        own = torch.arange(len(batch)) // size
        scores, rewards = reward(images, batch.prompts, batch.metadata, own)
        for place in range(len(batch) // size):
            rows = ((own == place) & ~rewards.isnan()).nonzero().flatten()
            if len(rows) > 1:
                prompt, metadata = batch.prompts[place * size], batch.metadata[place * size]
                kept = {name: score[rows] for name, score in scores.items() if reward.for_all(name)}
                yield Group(prompt, metadata, x0[rows.to(x0.device)], rewards[rows], kept)


def _require_new_png(path: Path) -> None:
    """Before anything is drawn: a place where the picture can be written, its folder made."""
    if path.exists():
        raise UserError(f"{path} exists and is not replaced; choose another --out")
    if path.suffix != ".png":
        raise UserError(f"{path} would be no PNG; let --out end in .png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder of {path}: {error}. Choose another --out") from error


def _cell(metrics: Mapping[str, float], key: str) -> str:
    """0.512 ± 0.031, where the error is known; 3 for a count; empty for a score that this set does not have."""
    if key not in metrics:
        return ""
    if key.endswith(("/missing", "/retries")):
        return f"{metrics[key]:.0f}"
    error = metrics.get(f"{key}/stderr")
    return f"{metrics[key]:.3f}" + ("" if error is None else f" ± {error:.3f}")
