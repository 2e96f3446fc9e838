"""Runs of seconds on a tiny random pipeline, for the tests of the loop and for the processes that they start."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import tiny_sd3  # pyright: ignore[reportMissingImports] (tests/models)
from torch import Tensor

import dgpo
from dgpo import DGPO, Config, LoraConfig, Optimizer, Sampling
from dgpo.core import seeds
from dgpo.report.grids import to_pil
from dgpo.run import checkpoint

PROMPTS = ("a red cat", "two dogs", "a cup", "green", "one bird")
MODES: dict[str, tuple[DGPO, float]] = {  # the algorithm and the guidance of its rollouts
    "cfg": (DGPO(beta=3.0, kl_coef=0.02, clip_range=1e-3), 2.0),
    "cfg-free, frozen ref": (DGPO(beta=3.0, kl_coef=0.02, clip_range=1e-3, ref_guidance_scale=2.0), 1.0),
    "cfg-free, dynamic ref": (DGPO(beta=30.0, kl_coef=0.02, clip_range=1e-3, reference="old"), 1.0),
}


def save_pipeline(directory: Path) -> Path:
    """tests/models/tiny.py's pipeline, its velocities scaled down to the size of a trained model's."""
    pipeline = tiny_sd3()
    with torch.no_grad():
        for parameter in pipeline.transformer.proj_out.parameters():
            parameter.mul_(0.05)
    pipeline.save_pretrained(directory)
    return directory


def colour(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """More red, less green; in units of about one. (B, 3, H, W) -> (B,)."""
    return 100 * (images[:, 0] - images[:, 1]).mean((1, 2))


def fails(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
    """Score nothing."""
    raise ValueError("this reward never succeeds")


REWARDS = {"colour": colour}


def small(model: Path, out: Path, mode: str = "cfg", **changes: Any) -> Config:
    """Two groups of three images, three solver steps, two points. Changes are those of Config."""
    algorithm, guidance_scale = MODES[mode]
    algorithm = replace(algorithm, num_points=2, trunc_steps=2, sampling_switch=3, old_decay_rate=0.2)
    config = Config(
        model=str(model),
        out=str(out),
        device="cpu",
        iterations=3,
        prompts=PROMPTS,
        num_groups=2,
        group_size=3,
        rewards={"colour": 1.0},
        eval_every=0,
        noise_scale_every=0,
        checkpoint_every=1,
        report=False,
        algorithm=algorithm,
        sampling=Sampling(num_inference_steps=3, guidance_scale=guidance_scale),
        optimizer=Optimizer(lr=2e-3),
        lora=LoraConfig(rank=4, alpha=8),
    )
    return replace(config, **changes)


def run(config: Config, resume: Any = False, **options: Any) -> dgpo.Result:
    """`dgpo.train` with the colour reward, on one thread and without the report, whose figures take seconds."""
    torch.set_num_threads(1)
    return dgpo.train(config, resume=resume, **{"reward_functions": REWARDS, **options})


def write_pictures(folder: Path) -> Path:
    """A dataset of PNG files: three images of ranks with a tie, and two of which one is preferred."""
    (folder / "png").mkdir(parents=True)
    for i in range(5):
        to_pil(picture(i)).save(folder / "png" / f"{i}.png")
    names = [f"png/{i}.png" for i in range(5)]
    groups = [
        {"prompt": "a red cat", "images": names[:3], "ranks": [1, 3, 1]},
        {"prompt": "two dogs", "images": names[3:], "rewards": [0, 1]},
    ]
    (folder / "groups.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups))
    (folder / "dataset.json").write_text('{"format": 1}')
    return folder


def picture(number: int) -> Tensor:
    """(3, 64, 64) in [0, 1], at random."""
    return torch.rand(3, 64, 64, generator=seeds.generator(number, "picture"))


def newest(out: Path) -> int:
    """The iteration of a run's newest checkpoint."""
    path = checkpoint.latest(out)
    assert path is not None
    return checkpoint.iteration_of(path)


def rows(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run without wall times, in the order they were logged."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def tensors(out: Path, iteration: int, under: str = "checkpoints") -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    files = sorted((out / under / f"iteration-{iteration:06d}").glob("*.safetensors"))
    assert files, f"no checkpoint of iteration {iteration} in {out}"
    return {f"{file.stem}.{key}": tensor for file in files for key, tensor in load_file(file).items()}


def assert_same_run(one: Path, other: Path, iteration: int, but: Collection[str] = ()) -> None:
    """Two runs left the same weights, averages, optimizer and metrics, bit for bit. but: metrics that may differ."""
    left, right = tensors(one, iteration), tensors(other, iteration)
    assert left.keys() == right.keys()
    different = [key for key in left if not torch.equal(left[key], right[key])]
    assert not different, f"{len(different)} of {len(left)} tensors differ: {different[:3]}"
    logged, others = ([{k: v for k, v in row.items() if k not in but} for row in rows(out)] for out in (one, other))
    assert logged == others


ROUNDING = 1e-5
"""Of `distance`, where two ways to one result differ by the rounding of fp32 alone: processors give up to 1e-6."""


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|one - other| / |other|, over all tensors."""
    assert one.keys() == other.keys()
    gap = sum(float((one[key].double() - other[key].double()).square().sum()) for key in one)
    return (gap / sum(float(other[key].double().square().sum()) for key in other)) ** 0.5
