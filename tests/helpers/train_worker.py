"""One rank of test_train.py, started by torchrun: the same rollouts and runs as one process makes alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from runs import PROMPTS, REWARDS, colour, run, small, write_pictures
from updates import source_of

from dgpo import Config, Sampling, distributed, load_model, load_prompts
from dgpo.rewards.base import RewardError, group_reward
from dgpo.rewards.combine import RewardSet
from dgpo.training.metrics import describe
from dgpo.training.setup import trained_rewards


def straddling(model: Path, out: Path) -> Config:
    """Three groups of five: on two ranks the middle one lies on both.

    Of the evaluation set of one prompt one rank has none; that of nine is enough for intervals, and of the two pictures
    that are kept of its first seven prompts either rank draws some.
    """
    (out.parent / "eval.txt").write_text("a cup\n")
    (out.parent / "many.txt").write_text("\n".join(f"{number} cups" for number in range(9)))
    sets = {"many": str(out.parent / "many.txt"), "one": str(out.parent / "eval.txt")}
    return small(model, out, num_groups=3, group_size=5, iterations=2, eval_every=1, eval_prompts=sets, num_samples=14)


def aligned(model: Path, out: Path) -> Config:
    """Two groups of four, whole on their ranks, so that the noise scale is measured; the full network trains."""
    return small(model, out, group_size=4, iterations=2, finetune="full", noise_scale_every=1)


def offline(model: Path, out: Path) -> Config:
    """Five pictures of two groups in a dataset: on two ranks the first of them lies on both."""
    data = out.parent / "pictures"
    if distributed.is_main():
        write_pictures(data)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return small(model, out, offline=str(data), iterations=2)


def redrawn(model: Path, out: Path) -> Config:
    """Three images a group, and one of four groups drawn again: its images lie on both of two ranks."""
    again = {"drop_equal_groups": True, "redraw_groups": 1}
    return small(model, out, num_groups=4, iterations=2, noise_scale_every=1, **again)


def equal_for_a_cup(images, prompts, metadata):
    """colour, but the same for all images of one prompt."""
    cup = torch.tensor([prompt == "a cup" for prompt in prompts])
    return colour(images, prompts, metadata).masked_fill(cup, 0.0)


def rollout_of(folder: Path) -> dict[str, torch.Tensor]:
    """What a straddling rollout draws, with one image in each pass of the network; on every rank, over all ranks."""
    model = load_model(folder, device="cpu")
    config = small(folder, folder, num_groups=3, group_size=5, sampling=Sampling(num_inference_steps=3, batch_size=1))
    rollout = source_of(model, config, RewardSet({"colour": 1.0}, REWARDS), load_prompts(PROMPTS)).next(0)
    fields = ("x0", "images", "rewards", "advantages", "group_index", "image_index")
    return {name: distributed.all_gather_rows(getattr(rollout, name)) for name in fields}


def sometimes_red(images, prompts, metadata):
    """colour, but NaN for some of the images."""
    scores = colour(images, prompts, metadata)
    return scores.masked_fill((1000 * scores).long() % 3 == 0, torch.nan)


@group_reward
def apart(images, prompts, metadata, group_index):
    """How far the colours of an image are from the mean of its group's; it must have the whole group."""
    assert group_index.bincount().eq(5).all()
    bright = images.mean((1, 2, 3))
    means = torch.stack([bright[group_index == group].mean() for group in range(int(group_index.max()) + 1)])
    return {"total": (bright - means[group_index]).abs(), "mean": means[group_index]}


def composed(folder: Path) -> dict[str, Any]:
    """A straddling rollout with dropped images and a reward for whole groups of some tags; over all ranks."""
    model = load_model(folder, device="cpu")
    rewards, functions = {"red": 1.0, "apart": 0.5}, {"red": sometimes_red, "apart": apart}
    prompts = load_prompts([(prompt, {"tag": tag}) for prompt, tag in zip(PROMPTS, ("one", "two", "three"))])
    config = small(
        folder, folder, num_groups=3, group_size=5, sampling=Sampling(num_inference_steps=3, batch_size=1),
        rewards=rewards, reward_normalization="group", reward_failures={"red": "drop"},
        reward_tags={"apart": ("two", "three")},
    )  # fmt: skip
    rollout = source_of(model, config, trained_rewards(config, functions), prompts).next(0)
    rows = {**{name: rollout.score(name) for name in ("red", "apart", "apart/mean")}, **rollout._asdict()}
    names = ("red", "apart", "apart/mean", "rewards", "advantages", "trained")
    found = {name: distributed.all_gather_rows(rows[name]) for name in names}
    return {**found, "group_sizes": rollout.group_sizes, "metrics": describe(rollout, config)}


def fail_on_the_second_rank(images, prompts, metadata):
    if distributed.rank() == 1:
        raise ConnectionError("the judge is away")
    return colour(images, prompts, metadata)


def main(folder: Path, out: Path) -> None:
    distributed.init("cpu")
    assert distributed.world_size() == 2
    torch.set_num_threads(1)
    drawn, mixed = rollout_of(folder), composed(folder)
    run(straddling(folder, out / "straddling"))
    run(aligned(folder, out / "aligned"))
    run(offline(folder, out / "offline"))
    run(redrawn(folder, out / "redrawn"), reward_functions={"colour": equal_for_a_cup})
    try:
        run(small(folder, out / "failing"), reward_functions={"colour": fail_on_the_second_rank})
    except RewardError as error:
        (out / f"rank-{distributed.rank()}.json").write_text(json.dumps(str(error)))
    if distributed.is_main():
        torch.save(drawn, out / "rollout.pt")
        torch.save(mixed, out / "composed.pt")
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
