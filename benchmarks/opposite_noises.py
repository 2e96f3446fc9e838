"""How much of the gradient's noise goes when the draws of an update are arranged otherwise.

    python benchmarks/opposite_noises.py --groups 96

For every group of one rollout of the base model, DGPO's first gradient is taken twice, from independent draws of t and
noise, at four points of each image: with a noise for each image, with one for the whole group, and with opposite
noises at each t (`antithetic`). All have the same expectation and the same cost, so that their variances can be
compared: that between draws, half the mean square of the difference of the two, and the whole mean square, which is
what an optimizer sees. Appends a line to benchmarks/results/opposite_noises.jsonl. Prompts are of the train list.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from dgpo.core import seeds
from dgpo.run import folder as runfolder
from signal_by_t import first_groups

RESULTS = Path(__file__).parent / "results"
POINTS = 4
T = (0.6, 0.93)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kinds", default="colors,position,color_attr")
    options.add_argument("--groups", type=int, default=96)
    options.add_argument("--seed", type=int, default=7)
    given = options.parse_args()
    groups = first_groups(given.kinds, given.groups, given.seed)
    found = {"kinds": given.kinds, "groups": given.groups, "seed": given.seed, "points": POINTS, "t": T, "draws": {}}
    for name, draws in ARRANGEMENTS.items():
        between, whole = [], []
        for group in range(given.groups):
            one, other = (
                groups.gradient(
                    group, *draws(groups.size, groups.x0.shape[1:], seeds.generator(given.seed, group, number))
                )
                for number in range(2)
            )
            between.append((one - other).square().sum() / 2)
            whole.append((one.square().sum() + other.square().sum()) / 2)
        found["draws"][name] = {"between draws": summary(between), "mean square": summary(whole)}
        print(name, found["draws"][name], flush=True)
    found["environment"] = runfolder.conditions()
    with open(RESULTS / "opposite_noises.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


def summary(values: list[Tensor]) -> dict[str, float]:
    """Mean over groups, its standard error, and the median: a few groups have most of the variance."""
    every = torch.stack(values)
    return {
        "mean": every.mean().item(),
        "stderr": (every.std() / len(every) ** 0.5).item(),
        "median": every.median().item(),
    }


def stratified(number: int, rng: torch.Generator) -> Tensor:
    """One t in each of as many equal parts of the range."""
    return T[0] + (T[1] - T[0]) * (torch.arange(number) + torch.rand(number, generator=rng)) / number


def of_each_image(size: int, shape: torch.Size, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """t (POINTS * size,) and noise (POINTS * size, *shape), point by point."""
    return stratified(POINTS, rng).repeat_interleave(size), torch.randn(POINTS * size, *shape, generator=rng)


def of_the_group(size: int, shape: torch.Size, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """As above, one noise for all images at a point."""
    t, noise = stratified(POINTS, rng), torch.randn(POINTS, *shape, generator=rng)
    return t.repeat_interleave(size), noise.repeat_interleave(size, 0)


def opposite(size: int, shape: torch.Size, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """As above, the points in pairs of one t and opposite noises."""
    t, noise = stratified(POINTS // 2, rng), torch.randn(POINTS // 2, *shape, generator=rng)
    pairs = torch.stack([noise, -noise], 1).flatten(0, 1)
    return t.repeat_interleave(2 * size), pairs.repeat_interleave(size, 0)


ARRANGEMENTS = {"one noise an image": of_each_image, "one noise a group": of_the_group, "opposite noises": opposite}

if __name__ == "__main__":
    main()
