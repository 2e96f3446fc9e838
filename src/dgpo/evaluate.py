"""Evaluation: fixed prompts and fixed noise, so that two evaluations of a run differ by the weights alone.

For each set of prompts: the mean of every score with its standard error over prompts, the same for each kind of prompt
(the metadata's `tag`), and `drift`, the frozen reference's DSM loss on the images: how far they are from what the
pretrained model would draw. Scores that need a prompt's images together (diversity) get them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.config import Config
from dgpo.core import seeds
from dgpo.core.flow import interpolate, velocity_target
from dgpo.core.groups import group_mean
from dgpo.core.losses import dsm_loss
from dgpo.data import PromptSet
from dgpo.models import Cond, VelocityModel
from dgpo.rewards.combine import RewardSet
from dgpo.rollout import CondCache, chunks, decode, grid, sample

DRIFT_T = (0.3, 0.6, 0.9)


class Evaluation(NamedTuple):
    """What one evaluation found."""

    metrics: dict[str, float]  # eval/SET/SCORE, eval/SET/SCORE/stderr, eval/SET/SCORE/TAG
    images: Tensor  # (k, 3, H, W) the first image of the first prompts of the first set, at most num_samples
    prompts: list[str]  # k


def evaluate(
    model: VelocityModel,
    encode: CondCache,
    sets: Mapping[str, PromptSet],
    reward: RewardSet,
    config: Config,
    weights: str = "ema",
) -> Evaluation:
    """Score `weights` on every set. Each rank draws its share of the images; none is drawn twice."""
    metrics: dict[str, float] = {}
    shown = Evaluation({}, torch.empty(0), [])
    for name, prompts in sets.items():
        images, scores = _score_set(model, encode, prompts, reward, config, weights)
        for score, values in scores.items():
            metrics |= _summary(f"eval/{name}/{score}", values, prompts, config.eval_images_per_prompt)
        if not shown.prompts:
            count = min(config.num_samples, len(prompts))
            first = torch.arange(count) * config.eval_images_per_prompt
            shown = Evaluation({}, images[first], prompts.prompts[:count])
    return shown._replace(metrics=metrics)


def _score_set(
    model: VelocityModel,
    encode: CondCache,
    prompts: PromptSet,
    reward: RewardSet,
    config: Config,
    weights: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """All images of a set (n, 3, H, W) on the CPU and its scores {name: (n,)}, n = prompts * images per prompt."""
    copies = config.eval_images_per_prompt
    owner = torch.arange(len(prompts)).repeat_interleave(copies)
    mine = torch.arange(len(owner))[distributed.shard(len(owner))]
    streams = [seeds.generator(config.seed, "eval", i // copies, i % copies) for i in mine.tolist()]
    cond = encode([prompts.prompts[i] for i in owner[mine]])
    sampling = config.sampling
    scale = sampling.guidance_scale if sampling.eval_guidance_scale is None else sampling.eval_guidance_scale
    x0 = sample(model, cond, streams, grid(model, sampling), sampling, scale, weights)
    drift = _drift(model, x0, cond, streams, sampling.batch_size) if "ref" in model.weights.names else None
    images = distributed.all_gather_rows(decode(model, x0, sampling.batch_size)).cpu()
    rows = prompts.subset(owner.tolist())
    scores, rewards = reward(images, rows.prompts, rows.metadata)
    scores = {"reward": rewards, **scores}
    if drift is not None:
        scores["drift"] = distributed.all_gather_rows(drift).cpu()
    return images, scores


@torch.no_grad()
def _drift(model: VelocityModel, x0: Tensor, cond: Cond, streams: Sequence[torch.Generator], batch: int) -> Tensor:
    """The reference's DSM loss on x0 (n, *latent), mean over DRIFT_T, with each image's own noise; returns (n,)."""
    total = torch.zeros(len(x0), device=x0.device)
    for rows in chunks(len(x0), batch):
        noise = seeds.randn_rows(streams[rows], x0.shape[1:]).to(x0)
        target = velocity_target(x0[rows], noise)
        for level in DRIFT_T:
            t = torch.full((len(noise),), level, device=x0.device)
            v = model.velocity(interpolate(x0[rows], noise, t), t, cond[rows], weights="ref")
            total[rows] += dsm_loss(v, target) / len(DRIFT_T)
    return total


def _summary(key: str, values: Tensor, prompts: PromptSet, copies: int) -> dict[str, float]:
    """Mean over images, standard error over prompts, mean of each kind of prompt."""
    owner = torch.arange(len(prompts)).repeat_interleave(copies)
    means = group_mean(values.float().cpu(), owner, len(prompts))
    out = {key: means.mean().item()}
    if len(means) > 1:
        out[f"{key}/stderr"] = (means.std() / len(means) ** 0.5).item()
    tags = [m.get("tag") for m in prompts.metadata]
    for tag in sorted({t for t in tags if isinstance(t, str)}):
        out[f"{key}/{tag}"] = means[torch.tensor([t == tag for t in tags])].mean().item()
    return out
