"""Evaluation: fixed prompts and fixed noise, so that two evaluations of a run differ by the weights alone.

For each set of prompts: the mean of every score with its standard error over different prompts, the same for each kind
of prompt (the metadata's `tag`), and `drift`, the frozen reference's DSM loss on the images: how far they are from what
the pretrained model would draw. Each rank draws and scores its share of the prompts, all images of a prompt together,
for scores that need them so (diversity). No image is drawn twice to fill a batch or a rank. An image that a reward
dropped is left out of that score's mean, and of the reward's, and counted as `missing`; calls repeated are `retries`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.config import Config
from dgpo.core import seeds
from dgpo.core.clusters import numbered, standard_error
from dgpo.core.flow import interpolate, velocity_target
from dgpo.core.losses import dsm_loss
from dgpo.data.prompts import PromptSet
from dgpo.models import Cond, VelocityModel
from dgpo.models.text_cache import CondCache
from dgpo.rewards.base import RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.training.draw import Drawn, chunks, counted, draw, for_evaluation
from dgpo.utils.progress import Tell, silent

DRIFT_T = (0.3, 0.6, 0.9)


class Samples(NamedTuple):
    """Evaluated images that are kept to be looked at: k of each of p prompts."""

    images: Tensor  # (p * k, 3, H, W) in [0, 1], a prompt's images beside each other
    prompts: list[str]  # p
    scores: dict[str, Tensor]  # name -> (p * k,), NaN where an image has none

    @property
    def prompt_of_each(self) -> list[str]:
        """p * k, the prompt of each image."""
        return [prompt for prompt in self.prompts for _ in range(len(self.images) // len(self.prompts))]


class Evaluation(NamedTuple):
    """What one evaluation found."""

    metrics: dict[str, float]  # eval/SET/SCORE and, below it, TAG, stderr, missing, retries
    scores: dict[str, Tensor]  # SET/SCORE -> (prompts,) means over a prompt's images, NaN where it has none
    samples: Samples  # the first images of the first prompts of the first set, at most num_samples of them
    distinct: dict[str, Tensor]  # SET -> (prompts,) int64, the same number for the same prompt


def evaluate(
    model: VelocityModel,
    encode: CondCache,
    sets: Mapping[str, PromptSet],
    reward: RewardSet,
    config: Config,
    weights: str = "ema",
    tell: Tell = silent,
) -> Evaluation:
    """Score `weights` on every set; at least one."""
    metrics: dict[str, float] = {}
    means: dict[str, Tensor] = {}
    samples: Samples | None = None
    mine = {name: range(len(some))[distributed.shard(len(some))] for name, some in sets.items()}
    done, total = 0, sum(config.images_of(name) * len(own) for name, own in mine.items())

    def further(before: int, images: int) -> None:
        tell("evaluating", before + images, total)

    for name, prompts in sets.items():
        copies = config.images_of(name)
        metadata = [row for row in prompts.metadata for _ in range(copies)]
        share = _Share(prompts, mine[name], copies)
        images, scores, failures = distributed.together(
            partial(_score, model, encode, share, reward, config, weights, partial(further, done))
        )
        done += copies * len(share.mine)
        values = _of_all_ranks(scores)
        for score, each in values.items():
            means[f"{name}/{score}"] = each.view(len(prompts), copies).nanmean(1)
            missing = int(reward.missing(score, each, metadata).sum())
            metrics |= _summary(f"eval/{name}/{score}", means[f"{name}/{score}"], missing, prompts)
        retries = _retries(distributed.gather_objects([failures]))
        metrics |= {f"eval/{name}/{score}/retries": float(times) for score, times in retries.items()}
        samples = samples or _samples(images, values, share, config.num_samples)
    assert samples is not None, "there is at least one set"
    distinct = {name: numbered(some.prompts) for name, some in sets.items()}
    return Evaluation(metrics, means, samples, distinct)


def spread(num_samples: int, images_per_prompt: int, prompts: int) -> tuple[int, int]:
    """(p, k) of the p * k <= num_samples pictures that are kept: the first k images of the first p prompts.

    Several images show how often a prompt succeeds, so k is as large as four prompts leave room for.
    """
    k = min(images_per_prompt, max(1, num_samples // min(4, prompts)))
    return min(prompts, num_samples // k), k


def shown(sets: Mapping[str, PromptSet], config: Config) -> dict[str, PromptSet]:
    """The prompts of which pictures are kept: of the first set."""
    name, prompts = next(iter(sets.items()))
    p, _ = spread(config.num_samples, config.images_of(name), len(prompts))
    return {name: prompts.subset(range(max(1, p)))}


class _Share(NamedTuple):
    """What one rank draws of an evaluation set."""

    prompts: PromptSet  # all of the set
    mine: range  # of them
    copies: int  # images per prompt


def _samples(images: Tensor, scores: Mapping[str, Tensor], share: _Share, num_samples: int) -> Samples:
    """images: this rank's share; scores: those of all ranks."""
    prompts, mine, copies = share
    p, k = spread(num_samples, copies, len(prompts))
    kept = [prompt * copies + copy for prompt in range(p) for copy in range(k)]
    own = [row - mine.start * copies for row in kept if row // copies in mine]
    shown = distributed.gather_objects([*images[own]])
    return Samples(
        torch.stack(shown) if shown else torch.empty(0),
        prompts.prompts[:p],
        {name: each[kept] for name, each in scores.items()},
    )


def _of_all_ranks(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every score of all images; NaN for those of a rank that lacks it, as no reward there was for its prompts."""
    parts = [part for part in distributed.gather_objects([scores]) if part]
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: torch.cat([part.get(name, torch.full((len(next(iter(part.values()))),), torch.nan)) for part in parts])
        for name in names
    }


def _score(
    model: VelocityModel,
    encode: CondCache,
    share: _Share,
    reward: RewardSet,
    config: Config,
    weights: str,
    tell: Callable[[int], None],
) -> tuple[Tensor, dict[str, Tensor], Counter[str]]:
    """Images of this rank's share (n, 3, H, W), scores {name: (n,)}, failures; nothing where the share is empty."""
    prompts, mine, copies = share
    if not mine:
        return torch.empty(0), {}, Counter()
    keys = [(prompt, copy) for prompt in mine for copy in range(copies)]
    rows = prompts.subset(prompt for prompt, _ in keys)
    streams = [seeds.generator(config.seed, "eval", *key) for key in keys]
    cond, sampling = encode(rows.prompts), for_evaluation(config.sampling)
    x0, images, _ = Drawn.cat([*counted(draw(model, cond, streams, sampling, weights), tell)])
    group_index = torch.tensor([prompt - mine.start for prompt, _ in keys])
    scored = reward.scored(images, rows.prompts, rows.metadata, group_index)
    scores = dict(scored.scores)
    if reward.weights:  # none where a person alone is the reward
        scores["reward"] = reward.weighted(scored.scores, rows.metadata)
    if "ref" in model.weights.names:
        scores["drift"] = _drift(model, x0, cond, streams, sampling.batch_size).cpu()
    return images, scores, scored.failures


def _retries(failures: Iterable[Counter[str]]) -> dict[str, int]:
    """Name -> calls repeated, over all ranks, of the rewards that needed any."""
    total = sum(failures, Counter())
    return {key.removeprefix("retries/"): times for key, times in total.items() if key.startswith("retries/")}


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


def _summary(key: str, means: Tensor, missing: int, prompts: PromptSet) -> dict[str, float]:
    """means: (prompts,). Their mean and standard error, the mean of each kind, the number of images without a score."""
    here = ~means.isnan()
    if key.endswith("/reward") and not here.any():
        raise distributed.shared(
            RewardError(f"no image of {key} got a reward: the rewards failed, and their policy drops what fails")
        )
    out = {f"{key}/missing": float(missing)} if missing else {}
    tags = [row.get("tag") for row in prompts.metadata]
    kinds = {f"/{tag}": [t == tag for t in tags] for tag in sorted({t for t in tags if isinstance(t, str)})}
    for kind, rows in {"": [True] * len(tags), **kinds}.items():
        those = means[here & torch.tensor(rows)]
        if len(those):
            out[f"{key}{kind}"] = those.mean().item()
    error = standard_error(means[here], numbered(prompts.prompts)[here]) if here.any() else None
    return out if error is None else {**out, f"{key}/stderr": error}
