"""What a run needs, checked before anything is written: (config, given model, given rewards, processes) -> `Setup`.

`dgpo plan` and `--dry-run` call the same functions; the rules of the loop that are pure numbers stand in schedule.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dgpo import distributed
from dgpo.config import Config, from_dict, to_dict
from dgpo.config_checks import require_complete
from dgpo.data.groups import GroupDataset
from dgpo.data.own_prompts import part
from dgpo.data.prompts import PromptSet, load_prompts, sources_of
from dgpo.distributed.sharded import require_several
from dgpo.errors import UserError, did_you_mean
from dgpo.models import VelocityModel
from dgpo.models.configured import load_configured
from dgpo.models.long_text import long_prompts
from dgpo.models.pipeline import PipelineModel
from dgpo.rewards.base import Reward
from dgpo.rewards.combine import RewardSet, check_run
from dgpo.run import checkpoint
from dgpo.run import folder as runfolder
from dgpo.run.console import say
from dgpo.run.hub import require_login
from dgpo.run.trackers import NullTracker, TrackerGroup, make_trackers, require_trackers
from dgpo.training import schedule
from dgpo.training.draw import at_rollout_size
from dgpo.training.optim import make_optimizer
from dgpo.training.placing import with_offload
from dgpo.training.state import State
from dgpo.utils.devices import device_of, precision_of
from dgpo.utils.hub_id import RUNS
from dgpo.utils.people import HUMAN


@dataclass(frozen=True)
class Inputs:
    """What a run reads beside its model: prompts and rewards, checked against each other."""

    dataset: GroupDataset | None  # groups to learn from; None where rollouts are sampled
    prompts: PromptSet  # that train
    eval_sets: dict[str, PromptSet]  # none where the run never evaluates
    eval_sources: dict[str, str]  # where they come from: `eval_prompts`, the automatic set under its own name
    reward: RewardSet  # those that train
    eval_reward: RewardSet  # and those that are only watched
    doubts: list[str]  # what may be read or scored otherwise than meant
    people: bool = False  # whether a person is a reward

    @property
    def texts(self) -> list[str]:
        """Every prompt that the run can need."""
        return [text for some in (self.prompts, *self.eval_sets.values()) for text in some.prompts]


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs. Nothing has been written yet."""

    config: Config  # resolved
    model: VelocityModel
    rollout_model: VelocityModel  # the same at the size of the images that train
    optimizer: torch.optim.Optimizer
    inputs: Inputs
    resume: bool
    overwrite: bool


def prepare(
    config: Config,
    model: VelocityModel | None,
    reward_functions: Mapping[str, Reward],
    resume: bool,
    overwrite: bool,
) -> Setup:
    """Read, load and check everything; UserError for what cannot work."""
    if resume and overwrite:
        raise UserError("resume continues the run in the folder, and overwrite moves it aside; give one of them")
    require_complete(config, model is not None)
    device = distributed.init(device_of(config.device), config.rank_timeout_minutes)
    require_several(config.shard, distributed.world_size())
    if resume:
        config = runfolder.with_stored(config)
    else:
        config = replace(config, name=config.called)
        distributed.together(lambda: runfolder.require_free(config, overwrite) if distributed.is_main() else None)
    config = replace(config, dtype=precision_of(config.dtype, device))  # so that a resume elsewhere is no other run
    say(f"reading {_what(config)}; making the rewards {', '.join([*config.rewards, *config.eval_rewards])}")
    inputs = read_inputs(config, reward_functions)
    require_sides(config if model is None else replace(config, resolution=None), inputs.reward, inputs.eval_reward)
    config = replace(config, eval_prompts=inputs.eval_sources)
    if inputs.dataset is not None:
        config = resolved(config, inputs.dataset)
    require_trackers(config.trackers)
    if config.push_to_hub:
        require_login(config.push_to_hub)
    if model is None:
        config = with_offload(config, device, inputs.prompts.prompts)
        say(f"loading the model {config.model}")
        model = load(config, device)
        config = replace(config, lora=getattr(model, "lora", config.lora))  # what a LoRA to continue told
    elif config.offload == "auto":
        config = replace(config, offload="none")  # the given model stays where it is
    inputs = replace(inputs, doubts=[*inputs.doubts, *long_prompts(model, inputs.texts)])
    rollout_model = at_rollout_size(model, config.sampling)
    require_feasible(model, config, resume)
    if inputs.dataset is not None:
        require_trainable(inputs.dataset, rollout_model, config)
    return Setup(config, model, rollout_model, make_optimizer(model, config), inputs, resume, overwrite)


def _what(config: Config) -> str:
    if config.offline is not None:
        return f"the dataset {config.offline}"
    named = ", ".join(sources_of(config.prompts))
    return f"the prompts {named}" if named else "the prompts"


def read_inputs(config: Config, reward_functions: Mapping[str, Reward] | None = None) -> Inputs:
    """Read the prompts, or the dataset, make the rewards, and show them every prompt."""
    dataset = None if config.offline is None else GroupDataset(config.offline)
    prompts = load_prompts(config.prompts) if dataset is None else dataset.prompts
    prompts, eval_sets, eval_sources = part(config, prompts)
    reward, eval_reward = reward_sets(config, reward_functions or {})
    people = asks_people(config, reward_functions)
    trained = prompts if dataset is None else None
    doubts = check_run(reward, eval_reward, trained, eval_sets, config.images_of)
    if dataset is not None and (equal := dataset.equal_groups):
        doubts.append(
            f"{config.offline}: all images of {equal} of {len(dataset)} groups earned the same: "
            "these prefer no image to another"
        )
    return Inputs(dataset, prompts, eval_sets, eval_sources, reward, eval_reward, doubts, people)


def reward_sets(config: Config, functions: Mapping[str, Reward]) -> tuple[RewardSet, RewardSet]:
    """The rewards that train, and the same (not made twice) with those that are only watched at evaluations."""
    require_named(config, functions)
    reward = trained_rewards(config, functions)
    return reward, all_rewards(config, {**functions, **reward.rewards})


def require_sides(config: Config, reward: RewardSet, eval_reward: RewardSet) -> None:
    """Refuse sizes of images that rewards do not read, as far as the config says them: else a model has its own."""
    if config.offline is None:
        name = "resolution" if config.sampling.resolution is None else "sampling.resolution"
        reward.require_side(name, config.sampling.resolution or config.resolution)
    if schedule.evaluates(config, 0, last=True):
        eval_reward.require_side("resolution", config.resolution)


def require_named(config: Config, functions: Mapping[str, Reward]) -> None:
    """Refuse a function that no reward of the config is named after."""
    names = (*config.rewards, *config.eval_rewards)
    for name in functions:
        if name not in names:
            raise UserError(
                f"reward_functions gives {name!r}, which neither rewards nor eval_rewards names: it would not be used. "
                f"{did_you_mean(name, names)} A new one is trained by rewards={{{name!r}: 1.0}}"
            )


def trained_rewards(config: Config, functions: Mapping[str, Reward] | None = None) -> RewardSet:
    """The rewards that a config trains on, but for people, who score no picture when they are called."""
    return _rewards(config, functions)


def all_rewards(config: Config, functions: Mapping[str, Reward] | None = None) -> RewardSet:
    """The same, and those that are only watched at evaluations."""
    return _rewards(config, functions, watched=config.eval_rewards)


def asks_people(config: Config, functions: Mapping[str, Reward] | None = None) -> bool:
    """Whether a person is a reward. A function of that name in Python stands in for them."""
    return HUMAN in config.rewards and HUMAN not in (functions or {})


def _rewards(config: Config, functions: Mapping[str, Reward] | None, watched: Iterable[str] = ()) -> RewardSet:
    people = asks_people(config, functions)
    weights = {name: weight for name, weight in config.rewards.items() if name != HUMAN or not people}
    tags, failures = config.reward_tags, config.reward_failures
    return RewardSet(weights, functions, watched=watched, tags=tags, failures=failures, people=people)


def load(config: Config, device: torch.device) -> VelocityModel:
    """The config's model."""
    return load_configured(config, schedule.loaded_sets(config), str(device), config.shard)


def require_feasible(model: VelocityModel, config: Config, resume: bool) -> None:
    """Refuse what would fail later: too many processes, a model without the weights a run uses, a disk too small."""
    schedule.require_processes(config, distributed.world_size())
    missing = schedule.weight_sets(config) - set(model.weights.names)
    if missing:
        raise UserError(
            f"the run uses the weight sets {', '.join(sorted(missing))}, and the given model has only "
            f"{', '.join(model.weights.names)}; load it with sets=('ref', 'old', 'ema')"
        )
    if model.weights.sharded != (config.shard == "full"):
        kind = "sharded" if model.weights.sharded else "not sharded"
        raise UserError(
            f"shard={config.shard!r}, and the given model is {kind}; load it with "
            f"load_model(..., shard={config.shard!r})"
        )
    if isinstance(model, PipelineModel):
        model.require_guided(*schedule.guidance_scales(config))
    if config.checkpoint_every and not resume:
        weights = sum(4 * shape.numel() for shape in model.weights.shapes.values())
        needed = checkpoint_space(config, weights, sum(name != "ref" for name in model.weights.names))
        checkpoint.require_free_space(config.out or RUNS, needed)


def checkpoint_space(config: Config, weights: int, sets: int) -> int:
    """Bytes of all checkpoints that a run keeps at once. weights: bytes of a weight set; sets: how many are saved."""
    tensors = weights * (sets + 2)  # and Adam's two moments
    tensors += weights if config.finetune == "lora" else 0  # the LoRA once more, as other programs read it
    return tensors * (config.keep_checkpoints + 2)  # the best, and the one that is being written


def resolved(config: Config, dataset: GroupDataset) -> Config:
    """The group_size of the dataset's largest group; the noise scale is measured on groups of one size only."""
    same = len(set(dataset.sizes)) == 1
    return replace(config, group_size=max(dataset.sizes), noise_scale_every=config.noise_scale_every if same else 0)


def require_trainable(dataset: GroupDataset, model: VelocityModel, config: Config) -> None:
    """Refuse a dataset of another model, or of too few images for these processes."""
    distributed.together(lambda: dataset.require_fits(model))
    schedule.require_processes(config, distributed.world_size(), min(dataset.sizes))


def open_folder(config: Config, resume: bool, overwrite: bool, held: ExitStack) -> tuple[Path, Config, bool]:
    """The run folder, made or reopened by the first process, and whether it has a checkpoint; alike on all.

    held: keeps the folder locked
    """

    def opened() -> list[tuple[Path, dict[str, Any], bool]]:
        if not distributed.is_main():
            return []
        folder = runfolder.reopened(config.out or "", config) if resume else runfolder.created(config, overwrite)
        run, own = held.enter_context(folder)
        return [(run, to_dict(own), checkpoint.latest(run) is not None)]

    run, own, begun = distributed.gather_objects(distributed.together(opened))[0]
    return run, from_dict(own, algorithm=config.algorithm), begun


def open_trackers(config: Config, run: Path, state: State, resume: bool) -> TrackerGroup:
    """The main process's trackers; a resumed run takes back rows that its checkpoint does not know."""
    if not distributed.is_main():
        return TrackerGroup([NullTracker()])
    return make_trackers(config.trackers, run, to_dict(config), state.iteration if resume else None, state.evaluated)
