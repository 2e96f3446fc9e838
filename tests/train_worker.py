"""One rank of test_train.py, started by torchrun: the same rollouts and runs as one process makes alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dgpo import Config, Sampling, distributed, load_model, load_prompts
from dgpo.encoding import CondCache
from dgpo.rewards.base import RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.rollout import collect
from dgpo.stopwatch import Stopwatch
from runs import PROMPTS, REWARDS, colour, run, small, write_pictures


def straddling(model: Path, out: Path) -> Config:
    """Three groups of five: on two ranks the middle one lies on both.

    Of the evaluation set of one prompt one rank has none; that of nine is enough for intervals.
    """
    (out.parent / "eval.txt").write_text("a cup\n")
    (out.parent / "many.txt").write_text("\n".join(f"{number} cups" for number in range(9)))
    sets = {"one": str(out.parent / "eval.txt"), "many": str(out.parent / "many.txt")}
    return small(model, out, num_groups=3, group_size=5, iterations=2, eval_every=1, eval_prompts=sets, num_samples=1)


def aligned(model: Path, out: Path) -> Config:
    """Two groups of four, whole on their ranks, so that the noise scale is measured; the full network trains."""
    return small(model, out, group_size=4, iterations=2, finetune="full", noise_scale_every=1)


def offline(model: Path, out: Path) -> Config:
    """Five pictures of two groups in a dataset: on two ranks the first of them lies on both."""
    data = out.parent / "pictures"
    if distributed.is_main():
        write_pictures(data)
    distributed.barrier()
    return small(model, out, offline=str(data), iterations=2)


def rollout_of(folder: Path) -> dict[str, torch.Tensor]:
    """What a straddling rollout draws, with one image in each pass of the network; on every rank, over all ranks."""
    model = load_model(folder, device="cpu")
    config = small(folder, folder, num_groups=3, group_size=5, sampling=Sampling(num_inference_steps=3, batch_size=1))
    rewards, clock = RewardSet({"colour": 1.0}, REWARDS), Stopwatch(model.device)
    prompts = load_prompts(PROMPTS)
    rollout = collect(
        model, config.algorithm, rewards, CondCache(model), lambda n: prompts.subset(range(n)), config, 0, clock
    )
    fields = ("x0", "images", "rewards", "advantages", "group_index", "image_index")
    return {name: distributed.all_gather_rows(getattr(rollout, name)) for name in fields}


def fail_on_the_second_rank(images, prompts, metadata):
    if distributed.rank() == 1:
        raise ConnectionError("the judge is away")
    return colour(images, prompts, metadata)


def main(folder: Path, out: Path) -> None:
    distributed.init("cpu")
    assert distributed.world_size() == 2
    torch.set_num_threads(1)
    drawn = rollout_of(folder)
    run(straddling(folder, out / "straddling"))
    run(aligned(folder, out / "aligned"))
    run(offline(folder, out / "offline"))
    try:
        run(small(folder, out / "failing"), reward_functions={"colour": fail_on_the_second_rank})
    except RewardError as error:
        (out / f"rank-{distributed.rank()}.json").write_text(json.dumps(str(error)))
    if distributed.is_main():
        torch.save(drawn, out / "rollout.pt")
    distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
