"""Where along t the base model's gradient carries signal, and how much of its noise more draws would remove.

    python benchmarks/signal_by_t.py --kinds colors --groups 32

For every group of one rollout, DGPO's first gradient (the advantage-weighted DSM loss, sigmoid(s) = 1/2) is taken at
two independent draws of (t, noise) in each range of t. Products of different gradients are unbiased estimates:
    of different groups           |G|^2, the signal
    of one group, two draws       |G|^2 + variance between groups
    of one gradient with itself   |G|^2 + variance between groups + variance between draws
The noise scale is variance over signal, in groups: with one draw an image, and with as many draws as one likes.
Appends a line to benchmarks/results/signal_by_t.jsonl. Prompts are of the train list.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dgpo import load_model, load_prompts
from dgpo.core import seeds
from dgpo.core.advantages import group_advantages
from dgpo.core.flow import interpolate, velocity_target
from dgpo.core.losses import dsm_loss
from dgpo.data.sampler import PromptSampler
from dgpo.models import Cond, VelocityModel
from dgpo.recipes import recipe
from dgpo.rewards.combine import RewardSet
from dgpo.run import folder as runfolder
from dgpo.training.draw import Drawn, draw

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kinds", default="colors")
    options.add_argument("--groups", type=int, default=32)
    options.add_argument("--edges", type=float, nargs="+", default=[0.45, 0.6, 0.7, 0.78, 0.86, 0.93, 0.98])
    options.add_argument("--seed", type=int, default=7)
    given = options.parse_args()
    groups = first_groups(given.kinds, given.groups, given.seed)
    size, scores = groups.size, groups.scores

    def gradient(group: int, t: float, noise: Tensor) -> Tensor:
        return groups.gradient(group, torch.full((size,), t), noise.expand(size, *noise.shape))

    found = {"kinds": given.kinds, "groups": given.groups, "group_size": size, "seed": given.seed}
    found |= {f"mean/{name}": score.mean().item() for name, score in scores.items()}
    found["ranges"] = []
    for place, (low, high) in enumerate(pairwise(given.edges)):
        total, one, two, means = torch.zeros(()), 0.0, 0.0, 0.0
        for group in range(given.groups):
            pair = []
            for number in range(2):
                rng = seeds.generator(given.seed, "draw", place, group, number)
                t = low + (high - low) * torch.rand((), generator=rng).item()
                pair.append(gradient(group, t, torch.randn(groups.x0.shape[1:], generator=rng)))
            mean = (pair[0] + pair[1]) / 2
            one += sum(g.dot(g).item() for g in pair) / 2 / given.groups
            two += pair[0].dot(pair[1]).item() / given.groups
            means += mean.dot(mean).item()
            total = total + mean
        signal = (total.dot(total).item() - means) / (given.groups * (given.groups - 1))
        row = {"t": [low, high], "signal": signal, "between_groups": two - signal, "between_draws": one - two}
        row["noise_scale"] = {"one draw": (one - signal) / signal, "many draws": (two - signal) / signal}
        found["ranges"].append(row)
        scale = row["noise_scale"]
        print(
            f"t {low:g} to {high:g}: signal {signal:.2e}, variance between groups {two - signal:.2e}, draws "
            f"{one - two:.2e}; noise scale {scale['one draw']:.0f} groups, with many draws {scale['many draws']:.0f}",
            flush=True,
        )
    found["environment"] = runfolder.conditions()
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "signal_by_t.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


class Groups(NamedTuple):
    """One rollout of the base model, all of whose weights train."""

    model: VelocityModel
    size: int  # images of a group
    x0: Tensor  # (images, *latent)
    cond: Cond
    advantages: Tensor  # (images,)
    scores: dict[str, Tensor]

    def gradient(self, group: int, t: Tensor, noise: Tensor) -> Tensor:
        """DGPO's first gradient of one group, as a vector. t: (n,) and noise: (n, *latent), in turn for its images."""
        own = torch.arange(len(t)) % self.size + group * self.size
        v = self.model.velocity(interpolate(self.x0[own], noise, t), t, self.cond[own])
        loss = (self.advantages[own] * dsm_loss(v, velocity_target(self.x0[own], noise))).mean() / 2
        parts = torch.autograd.grad(loss, self.model.weights.parameters(), allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])


def first_groups(kinds: str, groups: int, seed: int) -> Groups:
    """Draw and score groups for prompts of the train list, as the recipe `tiny` does before it trains."""
    config = recipe("tiny")
    model = load_model(config.model, finetune="full", sets=())
    prompts = load_prompts(f"shapes:train:{kinds}")
    prompts = prompts.subset(PromptSampler(len(prompts), seed).next(groups))
    size = config.group_size
    rows = prompts.subset(group for group in range(groups) for _ in range(size))
    cond = model.encode(prompts.prompts).repeat(size)
    streams = [seeds.generator(seed, "signal", row) for row in range(len(rows))]
    x0, images, _ = Drawn.cat([*draw(model, cond, streams, replace(config.sampling, guidance_scale=1.0), "policy")])
    scores, rewards = RewardSet(config.rewards)(images, rows.prompts, rows.metadata)
    advantages = group_advantages(rewards, torch.arange(groups).repeat_interleave(size), groups, "batch")
    return Groups(model, size, x0, cond, advantages, scores)


if __name__ == "__main__":
    main()
