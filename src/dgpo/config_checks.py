"""What a config must keep: types, ranges, and fields that contradict each other. The first fault is told."""

from __future__ import annotations

import re
from operator import attrgetter
from typing import TYPE_CHECKING

from dgpo.algorithms.base import require
from dgpo.algorithms.registry import accept
from dgpo.core.guidance import require_guidance
from dgpo.core.solvers import SOLVERS
from dgpo.errors import UserError, did_you_mean
from dgpo.utils import fields
from dgpo.utils.people import HUMAN

if TYPE_CHECKING:
    from dgpo.config import Config


def check(config: Config) -> None:
    """Refuse a config that no run could have. What may be empty until a run begins, `require_complete` looks at."""
    accept(config.algorithm)
    fields.check_types(config)
    _check_ranges(config)
    _check_names(config)
    _check_updates(config)
    _check_offline(config)
    _check_human(config)
    require(
        config.shard == "none" or not config.compile,
        "shard='full' gathers weights between the parts that compile would turn into one; take compile=False",
    )
    require(
        config.shard == "none" or config.optimizer.name != "adamw8bit",
        "optimizer.name='adamw8bit' keeps moments in blocks, which the rows of processes would cut; with shard='full' "
        "take adamw, whose moments are shared too",
    )
    require_base(config.base_precision, config.finetune, config.shard)
    if config.offload != "auto":  # which looks at shard itself
        require_offload(config.offload, config.shard)
    require(
        config.lora.start is None or config.finetune == "lora",
        f"lora.start={config.lora.start!r} continues a LoRA, and finetune={config.finetune!r} trains none; take "
        "finetune='lora', or fuse the LoRA into the model first",
    )


def require_base(base_precision: str, finetune: str, shard: str) -> None:
    """Refuse a quantised base where nothing is frozen, or where processes would cut its packed weights."""
    known = ("auto", "int8", "nf4")
    require(
        base_precision in known, f"base_precision={base_precision!r} is unknown. {did_you_mean(base_precision, known)}"
    )
    require(
        base_precision == "auto" or finetune == "lora",
        f"base_precision={base_precision!r} stores frozen weights in few bits, and finetune={finetune!r} trains all of "
        "them; take finetune='lora', or base_precision='auto'",
    )
    require(
        base_precision == "auto" or shard == "none",
        f"base_precision={base_precision!r} packs weights, which shard={shard!r} would cut into rows; take one of them",
    )


def require_offload(offload: str, shard: str) -> None:
    """Refuse parts that would have to leave a network which processes share."""
    known = ("none", "parts")
    require(offload in known, f"offload={offload!r} is unknown. {did_you_mean(offload, known)}")
    require(
        offload == "none" or shard == "none",
        f"offload={offload!r} moves the network to the host and back, and shard={shard!r} keeps each process's share "
        "on its GPU; take one of them",
    )


def require_complete(config: Config, model_given: bool = False) -> None:
    """Refuse a run that lacks its model, prompts or rewards. model_given: as an object, in Python."""
    from dgpo.config import AUTOMATIC  # which imports this file

    # without rewards a dataset's own are trained, and the automatic set is left out
    scores = config.offline is None or bool(config.eval_every and config.eval_prompts not in ({}, AUTOMATIC))
    needed = {"model": not model_given, "prompts": config.offline is None, "rewards": scores}
    missing = [name for name, need in needed.items() if need and not getattr(config, name)]
    if missing:
        names = ", ".join(missing[:-1]) + " and " * (len(missing) > 1) + missing[-1]
        raise UserError(
            f"{names} {'are' if missing[1:] else 'is'} empty: a run needs a model, prompts and at "
            "least one reward. In a config file, for example:\n"
            "  model: stabilityai/stable-diffusion-3.5-medium\n"
            "  prompts: prompts.txt\n"
            "  rewards: {pickscore: 1.0}\n"
            "or in Python:\n"
            '  dgpo.Config(model="stabilityai/stable-diffusion-3.5-medium", prompts="prompts.txt",\n'
            '              rewards={"pickscore": 1.0})\n'
            "The recipe tiny has those of the demo: dgpo train tiny"
        )


_AT_LEAST = {
    "iterations": 1,
    "num_groups": 1,
    "group_size": 2,
    "micro_batch_size": 1,
    "updates_per_rollout": 1,
    "redraw_groups": 0,
    "eval_images_per_prompt": 1,
    "eval_every": 0,
    "num_samples": 0,
    "checkpoint_every": 0,
    "grace_seconds": 0,
    "keep_checkpoints": 1,
    "noise_scale_every": 0,
    "sampling.num_inference_steps": 1,
    "sampling.eval_num_inference_steps": 1,
    "sampling.batch_size": 1,
    "sampling.resolution": 1,
    "optimizer.warmup_steps": 0,
    "optimizer.decay_steps": 0,
    "optimizer.weight_decay": 0,
    "lora.rank": 1,
    "human.ahead": 1,
    "human.reuse": 0,
    "human.blind_every": 0,
    "human.repeat_every": 0,
    "human.share_every": 0,
}
_ABOVE_ZERO = (
    "max_minutes",
    "rank_timeout_minutes",
    "lora.alpha",
    "sampling.shift",
    "optimizer.lr",
    "optimizer.eps",
    "optimizer.max_grad_norm",
)
_WHY = {
    "group_size": ", because the images of a prompt are compared with each other",
    "micro_batch_size": ", or None for the whole batch",
    "eval_every": ", where 0 is never",
    "checkpoint_every": ", where 0 is never",
}


def _check_ranges(config: Config) -> None:
    for name, least in _AT_LEAST.items():
        value = attrgetter(name)(config)
        require(
            value is None or value >= least,
            f"{name}={value} cannot work: it must be at least {least}{_WHY.get(name, '')}",
        )
    for name in _ABOVE_ZERO:
        value = attrgetter(name)(config)
        require(value is None or value > 0, f"{name}={value} cannot work: it must be above 0")
    for name in ("lora.rank_pattern", "lora.alpha_pattern"):
        for layer, value in attrgetter(name)(config).items():
            require(value > 0, f"{name} gives {layer!r} {value}: it must be above 0")
    for name in ("sampling.guidance_scale", "sampling.eval_guidance_scale"):
        require_guidance(name, attrgetter(name)(config))
    for name, weight in config.rewards.items():
        require(
            weight != 0,
            f"the reward {name!r} has the weight 0, which trains on nothing; let eval_rewards name it, which are "
            "scored at evaluations and never trained, or give it a weight",
        )
    decays = (*config.optimizer.betas, config.optimizer.ema_decay)
    require(
        all(0 <= decay < 1 for decay in decays),
        f"optimizer.betas={config.optimizer.betas} and optimizer.ema_decay={config.optimizer.ema_decay} are decays of "
        "averages; they must be in [0, 1)",
    )


def _check_names(config: Config) -> None:
    require(
        config.name is None or (config.name not in ("", ".", "..") and not re.search(r"[/\\\0]", config.name)),
        f"name={config.name!r} cannot work: it becomes a folder of runs/, so it takes no separators of folders; "
        "--out says where a run is written",
    )
    _check_reward_names(config)
    for name, source in config.eval_prompts.items():
        require(
            bool(re.fullmatch(r"[\w.-]+", name)),
            f"eval_prompts has a set called {name!r}; names are part of eval/NAME/SCORE, so use letters and digits",
        )
        require(
            source != "prompts" or name == "auto",
            f"eval_prompts has {name}=prompts; the run's own prompts are auto=prompts, or {name}=prompts:held_out or "
            f"{name}=prompts:trained",
        )
    _check_eval_images(config)


def _check_eval_images(config: Config) -> None:
    from dgpo.config import AUTOMATIC, OWN_SETS, has_automatic  # which imports this file

    known, why = {*config.eval_prompts}, ""
    if has_automatic(config.eval_prompts):
        known = known - {*AUTOMATIC} | {*OWN_SETS}
        why = " auto=prompts is evaluated as held_out or, of fewer than 20 prompts, as trained."
    for name, images in config.eval_images.items():
        require(
            name in known,
            f"eval_images names {name!r}, which is no evaluation set.{why} {did_you_mean(name, known)}",
        )
        require(images >= 1, f"eval_images gives {name!r} {images}; it must be at least 1")


def _check_reward_names(config: Config) -> None:
    known = (*config.rewards, *config.eval_rewards)
    for field_name in ("reward_tags", "reward_failures"):
        for name in getattr(config, field_name):
            require(
                name in known,
                f"{field_name} names {name!r}, which neither rewards nor eval_rewards has. {did_you_mean(name, known)}",
            )
    for name in known:
        require(
            name not in ("reward", "drift"),
            f"a reward cannot be called {name!r}: evaluations report the weighted sum as reward and the distance from "
            "the base model as drift; give it another name",
        )
        longer = next((other for other in known if other.startswith(f"{name}/")), None)
        require(
            longer is None,
            f"the rewards {name!r} and {longer!r} cannot be told apart in the names of their scores, NAME/PART; let "
            "one be a function of yours that calls it, or give a server another address",
        )
    for name, tags in config.reward_tags.items():
        require(
            bool(tags),
            f"reward_tags has no tag for {name!r}, which would score nothing; name one, or leave it out",
        )


def _check_updates(config: Config) -> None:
    require(
        not (config.split_updates and config.algorithm.couples_group),
        f"split_updates gives an update part of each group, and {type(config.algorithm).__name__} needs whole groups",
    )
    require(
        not config.stop_on_alarm or bool(config.eval_every and config.eval_prompts and config.eval_rewards),
        "stop_on_alarm compares the scores of eval_rewards at evaluations, and there are none; name eval_rewards "
        "and eval_prompts and let eval_every be above 0, or switch it off",
    )
    solver = config.sampling.solver
    require(solver in SOLVERS, f"sampling.solver={solver!r} is unknown. {did_you_mean(solver, SOLVERS)}")
    config.algorithm.check_sampling(config.sampling.num_inference_steps)
    require(
        config.redraw_groups == 0 or config.drop_equal_groups,
        f"redraw_groups={config.redraw_groups} draws new prompts for dropped groups, and drop_equal_groups is off; "
        "switch it on, or take redraw_groups=0",
    )
    require(
        config.train_images is None or (config.train_images % 2 == 0 and config.train_images >= 2),
        f"train_images={config.train_images} must be an even number of at least 2, half of it from either end of a "
        "group; or None for all",
    )
    require(
        not config.text_dropout or config.is_deterministic(),
        f"text_dropout={config.text_dropout}: {type(config.algorithm).__name__} trains on the densities of the "
        "rollout's own steps, which were sampled with their prompts; take text_dropout=0",
    )
    require(0 <= config.text_dropout <= 1, f"text_dropout={config.text_dropout} is a share; it must be in [0, 1]")


def _check_offline(config: Config) -> None:
    require(
        config.offline is None or (config.is_deterministic() and config.algorithm.rollout_weights(0) == "policy"),
        f"offline={config.offline!r}: {type(config.algorithm).__name__} learns only from rollouts that it samples "
        "itself (as does dgpo with sampling_switch=0); take algorithm dgpo, awm, crd or diffusion_dpo",
    )
    require(
        config.offline is None or config.redraw_groups == 0,
        f"redraw_groups={config.redraw_groups} samples anew, and offline={config.offline!r} samples nothing; take "
        "redraw_groups=0",
    )
    require(
        config.offline is None or config.reward_normalization == "none",
        f"reward_normalization={config.reward_normalization!r} normalises scores as they are made, and the groups of "
        f"offline={config.offline!r} have their rewards; take reward_normalization='none'",
    )


def _check_human(config: Config) -> None:
    if HUMAN not in config.rewards:
        return
    require(
        config.offline is None,
        f"offline={config.offline!r} brings its rewards, and nothing is drawn that a person could judge; take one of "
        "offline and the reward human",
    )
    require(
        config.is_deterministic() and config.algorithm.rollout_weights(0) == "policy",
        f"the reward human: {type(config.algorithm).__name__} learns only from rollouts of its own last step, and "
        "answers come later and are learned from again (as with dgpo and sampling_switch=0); take algorithm dgpo, awm, "
        "crd or diffusion_dpo",
    )
    require(
        config.redraw_groups == 0,
        f"redraw_groups={config.redraw_groups} draws groups again that earned the same, and people are asked until "
        "enough groups teach something; take redraw_groups=0",
    )
    require(
        HUMAN not in config.reward_tags and HUMAN not in config.reward_failures,
        "reward_tags and reward_failures cannot name human: people are asked about every prompt, and may skip",
    )
    require(
        HUMAN not in config.eval_rewards,
        "eval_rewards cannot name human: nobody is asked about evaluations; human.blind_every compares base and "
        "trained model",
    )
