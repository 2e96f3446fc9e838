"""`dgpo train --dry-run`: one iteration of a config at the smallest size that still goes through every part of it.

The model, the rewards, the algorithm, the precision and the memory savings are the config's own; prompts, images,
solver steps and evaluations are as few as they can be. It runs in a folder of its own that is removed afterwards, tells
no tracker and uploads nothing. One process runs it, which shares its weights with no other.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dgpo.config import Config
from dgpo.data.prompts import PromptSet
from dgpo.errors import RunFailed, UserError
from dgpo.rewards.base import Reward
from dgpo.run import checkpoint
from dgpo.run import folder as runfolder
from dgpo.run.metric_names import eval_names
from dgpo.run.trackers import read_metrics
from dgpo.training import schedule
from dgpo.training.apply import load_trained
from dgpo.training.geometry import geometry
from dgpo.training.loop import train
from dgpo.training.placing import with_offload
from dgpo.training.setup import Inputs, asks_people, read_inputs, resolved
from dgpo.utils.devices import device_of
from dgpo.utils.people import HUMAN

GROUPS, PROMPTS, EVALUATED = 2, 4, 2  # at most; with rewards for some tags, a group of each tag


def dry_run(config: Config, resume: bool = False, overwrite: bool = False) -> list[str]:
    """Run it in one process and return what was checked, a line each. Raises as `train` would.

    resume: whether a run that has the folder would be continued; overwrite: or moved aside
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise UserError(f"WORLD_SIZE={processes}: a dry run is too small for several; start it without torchrun")
    if not (resume and runfolder.found(config)[1]):
        runfolder.require_free(config, overwrite)
    inputs = read_inputs(config)
    config = replace(config, offload=_offload(config, inputs))
    prompts, sets = inputs.prompts if inputs.dataset is None else None, inputs.eval_sets
    with tempfile.TemporaryDirectory(prefix="dgpo-dry-run-") as folder:
        small = smallest(config, Path(folder), prompts, sets)
        try:
            run = train(small, reward_functions=stand_in(config)).run
        except RunFailed as error:  # what was saved goes with the folder
            if error.plain is None and error.__cause__:
                raise error.__cause__ from None
            error.args = (error.plain or str(error),)
            raise
        return [*_found(config, small, run, prompts, sets), *(f"but {doubt}" for doubt in inputs.doubts)]


def _offload(config: Config, inputs: Inputs) -> Literal["none", "parts", "auto"]:
    """As the run itself would decide it, at its own size."""
    own = config if inputs.dataset is None else resolved(config, inputs.dataset)
    return with_offload(own, torch.device(device_of(config.device)), inputs.prompts.prompts).offload


def stand_in(config: Config) -> dict[str, Reward]:
    """What judges in a person's place: nobody is asked in a dry run."""

    def brightness(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return images.mean((1, 2, 3))

    return {HUMAN: brightness} if asks_people(config) else {}


def smallest(config: Config, folder: Path, prompts: PromptSet | None, sets: dict[str, PromptSet]) -> Config:
    """The config with as little to do as its own checks allow."""
    size = max(2, config.train_images or 0, config.updates_per_rollout if config.split_updates else 0)
    groups, chosen = GROUPS, prompts
    if prompts is not None and config.reward_tags:
        chosen = _one_of_each_tag(prompts)
        groups = max(GROUPS, len(chosen))
    few = {}
    for name, some in sets.items():
        shown = _one_of_each_tag(some) if config.reward_tags else some.subset(range(min(EVALUATED, len(some))))
        few[name] = _write(folder / f"eval-{name}.jsonl", shown, len(shown))
    small = replace(
        config,
        out=str(folder / "run"),
        iterations=1,
        max_minutes=None,
        num_groups=min(config.num_groups, groups),
        group_size=min(config.group_size, size) if config.offline is None else config.group_size,
        prompts=config.prompts if chosen is None else _write(folder / "prompts.jsonl", chosen, max(PROMPTS, groups)),
        eval_prompts=few,
        eval_every=1 if few else 0,
        eval_images_per_prompt=2,
        eval_images={},
        num_samples=2,
        checkpoint_every=1,
        noise_scale_every=min(config.noise_scale_every, 1),
        shard="none",
        trackers=(),
        push_to_hub=None,
    )
    return _with_fewest_steps(replace(small, micro_batch_size=_micro_batch(config, small)))


def _micro_batch(config: Config, small: Config) -> int | None:
    """One that cuts the few images as the run cuts its own: not at all, into whole groups, or into parts of a group."""
    g = geometry(config, 1)
    if g.micro_batches == 1:
        return None
    return 1 if g.micro_batch % g.group else schedule.trained_images(small)


def _with_fewest_steps(config: Config) -> Config:
    """As few solver steps as the algorithm's settings take."""
    for steps in range(2, config.sampling.num_inference_steps):
        sampling = replace(config.sampling, num_inference_steps=steps, eval_num_inference_steps=None)
        try:
            return replace(config, sampling=sampling)
        except UserError:
            continue
    return replace(config, sampling=replace(config.sampling, eval_num_inference_steps=None))


def _one_of_each_tag(prompts: PromptSet) -> PromptSet:
    """So that every reward is for one of them, at least."""
    tags = [str(row.get("tag")) for row in prompts.metadata]
    return prompts.subset(tags.index(tag) for tag in dict.fromkeys(tags))


def _write(path: Path, prompts: PromptSet, number: int) -> str:
    first = prompts.subset(range(min(number, len(prompts))))
    rows = [{**metadata, "prompt": prompt} for prompt, metadata in zip(first.prompts, first.metadata)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _found(
    config: Config, small: Config, run: Path, prompts: PromptSet | None, sets: dict[str, PromptSet]
) -> Iterator[str]:
    metrics = {key: value for row in read_metrics(run / "metrics.jsonl") for key, value in row.items()}
    read = f"all {len(prompts)} prompts" if prompts is not None else f"the dataset {config.offline}"
    yield f"{read} read{''.join(f', {len(some)} of {name}' for name, some in sets.items())}, with what the rewards need"
    images = small.num_groups * small.group_size
    steps = small.sampling.num_inference_steps
    if prompts is not None:
        yield f"{images} images sampled in {steps} steps and scored: reward {metrics['train/reward_mean']:.3f}"
    name = type(config.algorithm).__name__
    if "train/grad_norm" in metrics:
        yield f"{small.updates_per_rollout} update(s) by {name}: loss and gradient finite"
    else:
        yield f"no update by {name} was tried: the few images of each prompt earned the same, and then none trains"
    if asks_people(config):
        yield "nobody was asked: brightness judged in the place of a person"
    if sets:
        scores = [f"{n.eval_set}/{n.score} {metrics[n.key]:.3f}" for n in eval_names(metrics) if not n.tag]
        yield f"evaluated: {', '.join(scores)}"
    path = checkpoint.latest(run)
    assert path is not None
    checkpoint.load(path)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None  # of the run alone
    load_trained(str(run), small)
    yield f"checkpoint written, verified and loaded ({_size(path) / 2**20:.1f} MiB); weights exported to final/"
    if peak is not None:
        yield f"peak GPU memory at this size: {peak / 2**30:.1f} GiB"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
