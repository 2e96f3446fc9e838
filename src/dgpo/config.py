"""A run as one frozen, typed value. Python, YAML and the command line use the same field names.

The algorithm's own constants are the nested `algorithm` dataclass, so that a knob lives beside its formula, with its
checks. Unknown, ill-typed and contradictory fields are errors; nothing is converted, but integers serve as floats and
lists as tuples.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from dgpo.algorithms import ALGORITHMS, DGPO, AnyAlgorithm
from dgpo.algorithms.base import require
from dgpo.core.guidance import require_guidance
from dgpo.core.solvers import SOLVERS
from dgpo.errors import UserError, did_you_mean
from dgpo.utils import fields
from dgpo.utils.files import whole


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, used where finetune is "lora": W + (alpha / rank) * B A, with B zero at the start."""

    rank: int | None = None
    """Inner dimension; None: that of the LoRA in start, or 32."""
    alpha: float | None = None
    """The update is multiplied by alpha / rank; None: as in the LoRA in start, or 64. B is scaled to it, so that what
    start draws stays the same."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Layers of another rank, by their names or regular expressions for them, as in PEFT."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Layers of another alpha, named likewise."""
    target_modules: tuple[str, ...] | None = None
    """Names of the layers that get an adapter; None: those of the LoRA in start, or all attention projections of the
    model's family."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """How A is drawn: normal with deviation 1 / rank, or PEFT's usual uniform."""
    start: str | None = None
    """A LoRA to continue, as stock diffusers reads it: a folder, a file or a hub id; None: a new one."""

    def filled(self, other: LoraConfig) -> LoraConfig:
        """With the rank, alpha and layers of `other` where its own are not given."""
        changes: dict[str, Any] = {}
        if self.rank is None:
            changes |= {"rank": other.rank, "rank_pattern": self.rank_pattern or other.rank_pattern}
        if self.alpha is None:
            changes |= {"alpha": other.alpha, "alpha_pattern": self.alpha_pattern or other.alpha_pattern}
        if self.target_modules is None:
            changes |= {"target_modules": other.target_modules}
        return dataclasses.replace(self, **changes)


PLAIN_LORA = LoraConfig(rank=32, alpha=64)
"""What is not given, neither by the config nor by a LoRA to continue."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How rollouts and evaluations are sampled."""

    solver: str = "dpm_solver_pp_2m"
    """dpm_solver_pp_2m, euler or heun; of evaluations, and of rollouts unless the algorithm's sampler is stochastic."""
    num_inference_steps: int = 10
    """Solver steps."""
    guidance_scale: float = 4.5
    """Classifier-free guidance of rollouts; at least 1, which is none and costs half."""
    eval_guidance_scale: float | None = None
    """Guidance of evaluations and samples, at least 1; None: as rollouts."""
    eval_num_inference_steps: int | None = None
    """Solver steps of evaluations and samples; None: as rollouts."""
    shift: float | None = None
    """t' = shift t / (1 + (shift - 1) t) on the grid; None: the model's own."""
    batch_size: int = 64
    """Images sampled and decoded at a time, and in rollouts scored; evaluations score all images of a set at once."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and the averages that follow it."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps both moments in 8 bits (torchao): two bytes a trained parameter instead of eight."""
    lr: float = 3e-4
    """Learning rate after warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly."""
    decay_steps: int = 0
    """Steps after warm-up over which the rate falls along half a cosine to a tenth, where it stays; 0: it never falls.
    Counted in steps, not in shares of the run, so that a run can be continued."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    ema_decay: float = 0.95
    """Decay of `ema`, the slow average that is evaluated and exported; it starts smaller, (1 + n) / (10 + n)."""


AUTOMATIC = {"auto": "prompts"}
"""`eval_prompts` where none are given. A run puts the set there that its prompts allow: data/own_prompts.py."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run. With the same config, versions and machine a run repeats bit for bit."""

    out: str | None = None
    """Run folder; None: runs/NAME, or the first free runs/NAME-2, runs/NAME-3..."""
    name: str = "run"
    """What the run is called in folders and reports."""
    seed: int = 0
    """Of everything that is drawn."""
    iterations: int = 100
    """An iteration is one rollout and its updates."""
    max_minutes: float | None = None
    """End after the iteration in which training, evaluations not counted, has taken so long; None: no limit."""

    model: str = "tiny-sd3"
    """A diffusers pipeline folder, a Hugging Face id owner/name, or tiny-sd3 or tiny-sd3-words, inside this package."""
    finetune: Literal["lora", "full"] = "lora"
    """Train LoRA adapters or the whole transformer."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the frozen parts and of the network's arithmetic; trained weights and latents are fp32. auto: bf16 on a CUDA
    GPU that has it, else fp32; a run keeps what it began with."""
    device: str = "auto"
    """auto: CUDA where there is one, else Apple's mps, else the CPU."""
    resolution: int | None = None
    """Side of the images in pixels; None: the model's own."""
    gradient_checkpointing: bool = False
    """Compute activations again in backward: less memory, more time, the same gradients."""
    compile: bool = False
    """Compile the network's blocks with torch.compile: minutes at the start, then faster; the last bits differ."""
    vae_slicing: bool = False
    """Decode images one by one: less memory, the same images."""
    vae_tiling: bool = False
    """Decode large images in tiles that overlap: less memory, slightly other images."""
    distilled_guidance: float | None = None
    """The guidance that a guidance-distilled network (FLUX.1-dev) is told; None: the pipeline's own."""
    max_sequence_length: int | None = None
    """Text tokens, of the encoders where it can be chosen (T5, Qwen, Gemma); None: the pipeline's own."""
    free_text_encoders: bool = False
    """Encode every prompt of the run before its first iteration, then let the encoders go: less memory. The network
    goes to the GPU after them."""
    prompt_cache: str | None = None
    """A folder that keeps encoded prompts for later runs; None: in memory, for this run."""

    prompts: str | tuple[str, ...] = "shapes:train"
    """FILE.txt, FILE.jsonl, hf:NAME[:SPLIT[:COLUMN]], shapes:train[:KINDS], words:train[:TAGS],
    geneval:train[:TAGS], or a list."""
    offline: str | None = None
    """A folder of scored groups to learn from instead of rollouts; prompts and group_size are then the groups' own."""
    num_groups: int = 8
    """Prompts of one rollout, over all processes."""
    group_size: int = 16
    """Images per prompt; at least 2, for they are compared with each other."""
    micro_batch_size: int | None = None
    """Images per forward and backward; None: all. Does not change the update."""
    updates_per_rollout: int = 1
    """Optimizer steps on one rollout, each with its own draws of t and noise."""
    split_updates: bool = False
    """Each of these steps has its own part of the rollout's images instead of all of them."""
    drop_equal_groups: bool = False
    """Spend no update on groups whose images all earned the same: their advantages are 0, only a KL would act."""
    redraw_groups: int = 0
    """With drop_equal_groups: how often, at most, new prompts are sampled in place of the dropped ones."""
    train_images: int | None = None
    """Train only so many images of each group, half with the largest and half with the smallest advantages; even."""
    text_dropout: float = 0.0
    """Share of the trained images whose prompt is replaced by the empty one, so that guidance keeps its meaning."""

    rewards: dict[str, float] = field(default_factory=lambda: {"shapes": 1.0})
    """Name of a built-in reward, or package.module:name, with its weight in the sum."""
    reward_normalization: Literal["none", "group"] = "none"
    """group: each reward is made mean 0 and deviation 1 within a prompt's images before it is weighted (GDPO)."""
    reward_tags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a reward -> the values of metadata `tag` that it is for; one that is not named is for all prompts."""
    reward_failures: dict[str, str] = field(default_factory=dict)
    """Name of a reward -> what is done when it fails: raise (the default), retry(N, SECONDS), drop (leave the image
    out), or retry(N, SECONDS)+drop. SECONDS double at every retry."""
    eval_rewards: tuple[str, ...] = ()
    """Scores that are watched at evaluations and never trained."""
    eval_prompts: dict[str, str] = field(default_factory=AUTOMATIC.copy)
    """Name of an evaluation set -> where its prompts come from, as in `prompts`; or prompts:held_out or
    prompts:trained. auto=prompts: a tenth of the run's own prompts, 4 to 32, is held out of training; of fewer than 20
    none is, and those that train are evaluated."""
    eval_images_per_prompt: int = 2
    """Images per prompt of an evaluation set, from fixed noise."""
    eval_every: int = 10
    """Iterations between evaluations; the first and the last are always evaluated, unless this is 0: never."""
    stop_on_alarm: bool = False
    """Save and stop, as Ctrl-C does, after an evaluation in which a trained score has risen since the first one while
    a score of eval_rewards has fallen, both beyond their intervals over prompts."""
    num_samples: int = 12
    """Pictures kept at every evaluation: the first images of the first prompts, several of each, from fixed noise."""

    checkpoint_every: int = 10
    """Iterations between checkpoints; the last iteration always leaves one, unless this is 0: never, but for
    interruptions and failures, which always do."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, beside the best one."""
    noise_scale_every: int = 5
    """Optimizer steps between measurements of the gradient noise scale; 0: never."""
    license: str = "other"
    """Of the trained weights, in their model card: they inherit the model's, which is not looked up."""
    push_to_hub: str | None = None
    """owner/name of a Hugging Face repository to which the final weights are uploaded; None: nothing is."""
    hub_private: bool = True
    """Whether a repository that is made for that is private."""
    report: bool = True
    """Write report.html, the page with curves and pictures."""
    trackers: tuple[str, ...] = ()
    """tensorboard, wandb or trackio, beside metrics.jsonl, which is always written."""

    algorithm: AnyAlgorithm = DGPO()
    """The paper's constants."""
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    lora: LoraConfig = LoraConfig()

    def __post_init__(self) -> None:
        fields.check_types(self)
        _check_ranges(self)
        require(
            self.name not in ("", ".", "..") and not re.search(r"[/\\\0]", self.name),
            f"name={self.name!r} cannot work: it becomes a folder of runs/, so it takes no separators of folders; "
            "--out says where a run is written",
        )
        require(bool(self.rewards), "rewards is empty: a run needs at least one reward, such as {'shapes': 1.0}")
        _check_reward_names(self)
        for name in self.eval_prompts:
            require(
                bool(re.fullmatch(r"[\w.-]+", name)),
                f"eval_prompts has a set called {name!r}; names are part of eval/NAME/SCORE, so use letters and digits",
            )
        require(
            not (self.split_updates and self.algorithm.couples_group),
            f"split_updates gives an update part of each group, and {type(self.algorithm).__name__} needs whole groups",
        )
        require(
            not self.stop_on_alarm or bool(self.eval_every and self.eval_prompts and self.eval_rewards),
            "stop_on_alarm compares the scores of eval_rewards at evaluations, and there are none; name eval_rewards "
            "and eval_prompts and let eval_every be above 0, or switch it off",
        )
        solver = self.sampling.solver
        require(solver in SOLVERS, f"sampling.solver={solver!r} is unknown. {did_you_mean(solver, SOLVERS)}")
        self.algorithm.check_sampling(self.sampling.num_inference_steps)
        require(
            self.redraw_groups == 0 or self.drop_equal_groups,
            f"redraw_groups={self.redraw_groups} draws new prompts for dropped groups, and drop_equal_groups is off; "
            "switch it on, or take redraw_groups=0",
        )
        require(
            self.train_images is None or (self.train_images % 2 == 0 and 2 <= self.train_images <= self.group_size),
            f"train_images={self.train_images} must be an even number from 2 to group_size={self.group_size}, half of "
            "it from either end of a group; or None for all",
        )
        require(
            self.train_images is None or not self.algorithm.skips_zero,
            f"train_images={self.train_images} chooses images, and {type(self.algorithm).__name__} chooses its own; "
            "take train_images=None",
        )
        require(
            not self.text_dropout or self.is_deterministic(),
            f"text_dropout={self.text_dropout}: {type(self.algorithm).__name__} trains on the densities of the "
            "rollout's own steps, which were sampled with their prompts; take text_dropout=0",
        )
        require(
            self.offline is None or (self.is_deterministic() and self.algorithm.rollout_weights(0) == "policy"),
            f"offline={self.offline!r}: {type(self.algorithm).__name__} learns only from rollouts that it samples "
            "itself (as does dgpo with sampling_switch=0); take algorithm dgpo, awm or diffusion_dpo",
        )
        require(
            self.offline is None or self.redraw_groups == 0,
            f"redraw_groups={self.redraw_groups} samples anew, and offline={self.offline!r} samples nothing; take "
            "redraw_groups=0",
        )
        require(
            self.offline is None or self.reward_normalization == "none",
            f"reward_normalization={self.reward_normalization!r} normalises scores as they are made, and the groups of "
            f"offline={self.offline!r} have their rewards; take reward_normalization='none'",
        )
        require(
            self.lora.start is None or self.finetune == "lora",
            f"lora.start={self.lora.start!r} continues a LoRA, and finetune={self.finetune!r} trains none; take "
            "finetune='lora', or fuse the LoRA into the model first",
        )
        require(0 <= self.text_dropout <= 1, f"text_dropout={self.text_dropout} is a share; it must be in [0, 1]")

    def is_deterministic(self) -> bool:
        """Whether the algorithm's rollouts are those of an ODE solver."""
        return self.algorithm.sampler(0, self.sampling.num_inference_steps, torch.Generator()) is None


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
    "keep_checkpoints": 1,
    "noise_scale_every": 0,
    "sampling.num_inference_steps": 1,
    "sampling.eval_num_inference_steps": 1,
    "sampling.batch_size": 1,
    "optimizer.warmup_steps": 0,
    "optimizer.decay_steps": 0,
    "optimizer.weight_decay": 0,
    "lora.rank": 1,
}
_ABOVE_ZERO = (
    "max_minutes",
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


MAY_CHANGE = (
    "out",
    "iterations",
    "max_minutes",
    "eval_every",
    "stop_on_alarm",
    "checkpoint_every",
    "keep_checkpoints",
    "report",
    "trackers",
    "num_samples",
    "compile",
    "micro_batch_size",
    "sampling.batch_size",
    "gradient_checkpointing",
    "vae_slicing",
    "license",
    "push_to_hub",
    "hub_private",
    "device",
    "reward_failures",
)
"""Fields that a resumed run may set anew: they do not change what iterations compute, but for the rounding of sums."""


def to_dict(config: Config) -> dict[str, Any]:
    """Plain YAML types; `algorithm` gets its `name` so that it can be read back."""
    values = fields.plain(dataclasses.asdict(config))
    names = {kind: name for name, kind in ALGORITHMS.items()}
    return {**values, "algorithm": {"name": names[type(config.algorithm)], **values["algorithm"]}}


def from_dict(values: Mapping[str, Any], where: str = "config") -> Config:
    """The config that `values` describe; missing fields have their defaults. Strict about names and types."""
    try:
        algorithm = dict(fields.mapping("algorithm", values.get("algorithm")))
        name = algorithm.pop("name", "dgpo")
        require(name is not None, f"algorithm.name is empty; give one of {', '.join(ALGORITHMS)}, or leave it out")
        name = str(name)
        require(name in ALGORITHMS, f"algorithm.name={name!r} is unknown. {did_you_mean(name, ALGORITHMS)}")
        values = {**values, "algorithm": fields.build(ALGORITHMS[name], algorithm, Config, "algorithm.")}
        return fields.build(Config, values, Config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def load_yaml(path: str | Path) -> Config:
    """Read a config file."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except _TwiceError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config {str(path)!r}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no config: it must hold fields such as `iterations: 100`, one a line")
    return from_dict(values, str(path))


def save_yaml(config: Config, path: Path) -> None:
    """Write a config file, whole or not at all."""
    with whole(path) as unfinished:
        unfinished.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def changed_fields(before: Config, after: Config) -> list[str]:
    """Names of the fields that differ, such as `seed` and `optimizer.lr`."""
    return fields.changed(before, after)


class _TwiceError(Exception):
    """A mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """Safe, reads 3e-4 as a number and refuses equal keys, as YAML 1.2 does and PyYAML does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _TwiceError(
                    f"{key.value!r} stands in line {lines[key.value]} and again in line {line}, under one heading; "
                    "only one of them could count. Delete the other"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
