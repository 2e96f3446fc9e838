"""How much of a slow reward's time the sampler hides.

    python benchmarks/reward_overlap.py

Rollouts of the embedded model (8 groups of 12 images, 20 solver steps, 16 images at a time), in turn with three
rewards: one that costs nothing; one that waits 50 ms an image, as for a server; one that computes 50 ms an image in
Python, and competes with the sampler for Python's lock and for a core. Hidden is the share of the reward's own time
that the loop did not wait for, 1 - time/reward / (50 ms * images): what the last batch takes cannot be hidden. CPU time
over that with the free reward tells whether the sampler had more to do; of `computes` it holds the reward's own 50 ms.
Writes benchmarks/results/reward_overlap.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from dgpo.config import Config
from dgpo.data.prompts import load_prompts
from dgpo.models.text_cache import CondCache
from dgpo.recipes import recipe
from dgpo.rewards.base import Reward
from dgpo.rewards.combine import RewardSet
from dgpo.run import folder as runfolder
from dgpo.run.stopwatch import Stopwatch
from dgpo.training.setup import load
from dgpo.training.sources import Sampled

RESULTS = Path(__file__).parent / "results"
SECONDS, ROUNDS = 0.05, 4


def compute(seconds: float) -> None:
    """Keep a core busy for so much CPU time of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def reward(spend: Callable[[float], None]) -> Reward:
    """Spends SECONDS an image, then gives different numbers."""

    def score(images, prompts, metadata):
        spend(SECONDS * len(images))
        return [float(i) for i in range(len(images))]

    return score


REWARDS = {"free": reward(lambda seconds: None), "waits": reward(time.sleep), "computes": reward(compute)}


def main() -> None:
    torch.set_num_threads(1)
    base = recipe("tiny")
    sampling = replace(base.sampling, num_inference_steps=20, batch_size=16)
    config = replace(base, num_groups=8, group_size=12, rewards={"reward": 1.0}, sampling=sampling)
    model, prompts = load(config, torch.device("cpu")), load_prompts(config.prompts).subset(range(config.num_groups))
    encode, images = CondCache(model), config.num_groups * config.group_size

    def rollout(kind: str, iteration: int) -> dict[str, float]:
        clock, rewards = Stopwatch(model.device), RewardSet(config.rewards, {"reward": REWARDS[kind]})
        source = Sampled(model, rewards, prompts, encode, config, clock)
        wall, cpu = time.perf_counter(), time.process_time()
        source.next(iteration)
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **clock.read()}

    rollout("free", 0)  # warm up
    rounds = [{kind: rollout(kind, number) for kind in REWARDS} for number in range(ROUNDS)]
    own = SECONDS * images
    record = {
        "environment": runfolder.conditions(),
        "settings": settings(config),
        "reward_seconds": own,
        "median_hidden": statistics.median(1 - row["waits"]["time/reward"] / own for row in rounds),
        "median_cpu_over_free": {
            kind: statistics.median(row[kind]["cpu"] / row["free"]["cpu"] for row in rounds) for kind in REWARDS
        },
        "rounds": rounds,
    }
    (RESULTS / "reward_overlap.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("median_hidden", "median_cpu_over_free")}))


def settings(config: Config) -> dict[str, int]:
    """What decides how much can be hidden."""
    s = config.sampling
    return {
        "images": config.num_groups * config.group_size,
        "batch_size": s.batch_size,
        "num_inference_steps": s.num_inference_steps,
    }


if __name__ == "__main__":
    main()
