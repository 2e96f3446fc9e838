"""What the loop does in its third iteration, counted where it is done: network forwards, decodes, meters."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import REWARDS, colour, run, small

from dgpo import AWM, CRD, DGPO, RAM, Config, DiffusionDPO, DiffusionNFT, FlowGRPO, Sampling, distributed
from dgpo.models.pipeline import PipelineModel
from dgpo.rewards.base import Reward
from dgpo.training import running, sources, update
from dgpo.training.meter import GradientMeter
from dgpo.types import Rollout

COUNTED = 2
"""The iteration, counted from 0: `old` and the policy differ by then."""

OF_GROUP = {"trunc_steps": 2, "num_points": 2}
AFTER_OLD = {**OF_GROUP, "old_decay_rate": 0.2}
CASES: dict[str, dict[str, Any]] = {
    "dgpo": {},
    "guided reference": {"mode": "cfg-free, frozen ref"},
    "reference old": {"mode": "cfg-free, dynamic ref", "updates_per_rollout": 2},
    "parts of a group": {"micro_batch_size": 3},
    "parts of a group that is never switched off": {"algorithm": DGPO(**OF_GROUP, beta=0.0), "micro_batch_size": 3},
    "one image at a time": {"micro_batch_size": 1, "noise_scale_every": 1},
    "a whole group and a bit": {"micro_batch_size": 5, "num_groups": 3},
    "half of the images": {"train_images": 2, "micro_batch_size": 5, "noise_scale_every": 1},
    "half, in micro-batches between them and a group": {
        "train_images": 2,
        "micro_batch_size": 3,
        "noise_scale_every": 1,
    },
    "measured": {"noise_scale_every": 1},
    "measured now and then": {"noise_scale_every": 2, "updates_per_rollout": 3},
    "one group": {"num_groups": 1, "noise_scale_every": 1},
    "small sampling batches": {"sampling": Sampling(num_inference_steps=3, guidance_scale=2.0, batch_size=3)},
    "heun": {"sampling": Sampling(num_inference_steps=3, solver="heun", guidance_scale=1.0)},
    "awm": {"algorithm": AWM(num_points=2), "noise_scale_every": 1},
    "awm, two updates": {"algorithm": AWM(num_points=2), "updates_per_rollout": 2},
    "awm, an update of its own images": {
        "algorithm": AWM(num_points=2),
        "updates_per_rollout": 2,
        "split_updates": True,
        "noise_scale_every": 1,
    },
    "nft, uneven updates": {
        "algorithm": DiffusionNFT(**AFTER_OLD),
        "group_size": 3,
        "updates_per_rollout": 2,
        "split_updates": True,
        "noise_scale_every": 1,
    },
    "nft, one of three updates has groups of one size": {
        "algorithm": DiffusionNFT(**AFTER_OLD, kl_coef=0.0),
        "updates_per_rollout": 3,
        "split_updates": True,
        "noise_scale_every": 1,
    },
    "nft, half of the images": {
        "algorithm": DiffusionNFT(**AFTER_OLD),
        "train_images": 2,
        "micro_batch_size": 4,
    },
    "flow_grpo": {"algorithm": FlowGRPO(), "updates_per_rollout": 2, "split_updates": True},
    "flow_grpo, heun": {
        "algorithm": FlowGRPO(window=1, kl_coef=0.0),
        "sampling": Sampling(num_inference_steps=3, solver="heun", guidance_scale=2.0),
        "micro_batch_size": 4,
    },
    "dpo": {"algorithm": DiffusionDPO(num_points=2), "noise_scale_every": 1},
    "ram": {"algorithm": RAM(num_points=2)},
    "ram, two updates of their own images": {
        "algorithm": RAM(num_points=2),
        "updates_per_rollout": 2,
        "split_updates": True,
    },
    "ram by the policy": {"algorithm": RAM(num_points=2, sampler_weights="policy"), "noise_scale_every": 1},
    "crd": {"algorithm": CRD(**OF_GROUP), "noise_scale_every": 1},
    "crd, parts of a group, two updates": {
        "algorithm": CRD(**OF_GROUP),
        "micro_batch_size": 3,
        "updates_per_rollout": 2,
    },
    "crd without a KL": {"algorithm": CRD(**OF_GROUP, kl_coef=0.0)},
    "dpo, parts of a pair": {"algorithm": DiffusionDPO(num_points=2), "micro_batch_size": 1},
    "dpo, whole pairs": {"algorithm": DiffusionDPO(num_points=2), "micro_batch_size": 3, "num_groups": 3},
    "nothing equal": {"drop_equal_groups": True, "redraw_groups": 2, "noise_scale_every": 1},
}
SEVERAL: dict[str, dict[str, Any]] = {
    "whole groups": {"noise_scale_every": 1},
    "a group on both": {"num_groups": 3, "group_size": 5, "noise_scale_every": 1},
    "a group on both, in parts": {"num_groups": 3, "micro_batch_size": 3},
    "half of a group on both": {"num_groups": 3, "train_images": 2},
    "half of whole groups": {"train_images": 2, "noise_scale_every": 1, "micro_batch_size": 4},
    "awm, a group on both": {"num_groups": 3, "algorithm": AWM(num_points=2), "micro_batch_size": 4},
    "nft, uneven": {
        "algorithm": DiffusionNFT(**AFTER_OLD),
        "num_groups": 3,
        "group_size": 3,
        "updates_per_rollout": 2,
        "split_updates": True,
    },
    "dpo": {"algorithm": DiffusionDPO(num_points=2), "num_groups": 3},
    "ram, a group on both": {"algorithm": RAM(num_points=2), "num_groups": 3},
    "crd, a group on both": {"algorithm": CRD(**OF_GROUP), "num_groups": 3},
    "all of the others drawn again": {
        "num_groups": 4,
        "drop_equal_groups": True,
        "redraw_groups": 2,
        "noise_scale_every": 1,
        "micro_batch_size": 8,
    },
}


def case(model: Path, out: Path, changes: dict[str, Any]) -> Config:
    """Two groups of four images, three solver steps, two points; changes are those of `runs.small`."""
    mode = changes.get("mode", "cfg")
    usual = {"num_groups": 2, "group_size": 4, "checkpoint_every": 0, "iterations": COUNTED + 1}
    return small(model, out, **{**usual, **changes, "mode": mode})


@dataclass
class Counts:
    """Of one process. Rows are those that the network computes."""

    images: int = 0  # of the rollout
    trained: int = 0  # of them
    sampling: list[int] = field(default_factory=list)  # rows of each forward
    decoding: list[int] = field(default_factory=list)
    frozen: dict[str, int] = field(default_factory=dict)  # weight set -> rows of forwards without gradient
    updates: list[list[int]] = field(default_factory=list)  # of each update, rows of each forward with gradient
    meters: int = 0


def counted(config: Config, functions: dict[str, Reward] = REWARDS) -> Counts:
    """Run, and count the iteration COUNTED."""
    counts, now = Counts(), {"iteration": -1, "sampling": False}
    own_next, own_learn, own_to_train = sources.Sampled.next, update.learn, running.to_train

    def here() -> bool:
        return now["iteration"] == COUNTED

    def next_rollout(self: sources.Sampled, iteration: int) -> Rollout:
        now.update(iteration=now["iteration"] + 1, sampling=True)
        rollout = own_next(self, iteration)
        now["sampling"] = False
        counts.images = len(rollout.prompts)
        return rollout

    def to_train(*args: Any) -> Rollout:
        rollout = own_to_train(*args)
        counts.trained = len(rollout.prompts)
        return rollout

    def learn(*args: Any) -> dict[str, float]:
        if here():
            counts.updates.append([])
        return own_learn(*args)

    class Meter(GradientMeter):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            counts.meters += here()

    forward, decode = PipelineModel._forward, PipelineModel.decode

    def counted_forward(self: PipelineModel, x_t: torch.Tensor, *args: Any) -> torch.Tensor:
        if here() and now["sampling"]:
            counts.sampling.append(len(x_t))
        elif here() and torch.is_grad_enabled():
            counts.updates[-1].append(len(x_t))
        elif here():
            counts.frozen[self.weights._active] = counts.frozen.get(self.weights._active, 0) + len(x_t)
        return forward(self, x_t, *args)

    def counted_decode(self: PipelineModel, x0: torch.Tensor) -> torch.Tensor:
        if here():
            counts.decoding.append(len(x0))
        return decode(self, x0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources.Sampled, "next", next_rollout)
        patch.setattr(running, "to_train", to_train)
        patch.setattr(update, "learn", learn)
        patch.setattr(update, "GradientMeter", Meter)
        patch.setattr(PipelineModel, "_forward", counted_forward)
        patch.setattr(PipelineModel, "decode", counted_decode)
        run(config, reward_functions=functions)
    return counts


def only_the_first_differ(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> torch.Tensor:
    """colour on the first process, equal rewards on the others: the groups that it has no image of are drawn again."""
    return colour(images, prompts, metadata) if distributed.is_main() else torch.full((len(prompts),), 0.5)


def counts_of_cases(folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """SEVERAL on this process."""
    found = {}
    for number, (name, changes) in enumerate(SEVERAL.items()):
        again = "redraw_groups" in changes
        functions = {"colour": only_the_first_differ} if again else REWARDS
        found[name] = asdict(counted(case(folder, out / str(number), changes), functions))
    return found
