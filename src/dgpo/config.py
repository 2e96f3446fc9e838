"""A run as one frozen, typed value. Python, YAML and the command line use the same field names.

The algorithm's own constants are the nested `algorithm` dataclass, so that a knob lives beside its formula, with its
checks. Unknown, ill-typed and contradictory fields are errors; nothing is converted, but integers serve as floats and
lists as tuples.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgpo.algorithms import base
from dgpo.algorithms.base import require
from dgpo.algorithms.dgpo import DGPO
from dgpo.algorithms.registry import known_algorithms, make_algorithm, path_of
from dgpo.config_checks import check
from dgpo.errors import UserError
from dgpo.utils import fields
from dgpo.utils.files import whole
from dgpo.utils.late import torch
from dgpo.utils.strict_yaml import dump, read_mapping

if TYPE_CHECKING:
    from dgpo.algorithms.base import Algorithm
else:  # any object that keeps the protocol, which `check` looks at; whatever asks for the type gets the object's own
    Algorithm = Any


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
    negative_prompt: str = ""
    """What guidance leads away from, in rollouts, evaluations and a guided reference; as good as no prompt if empty."""
    eval_guidance_scale: float | None = None
    """Guidance of evaluations and samples, at least 1; None: as rollouts."""
    eval_num_inference_steps: int | None = None
    """Solver steps of evaluations and samples; None: as rollouts."""
    shift: float | None = None
    """t' = shift t / (1 + (shift - 1) t) on the grid; None: the model's own, which may depend on the size of images."""
    resolution: int | None = None
    """Side in pixels of the images that train: rollouts, groups of a dataset, groups that people judge. None: that of
    evaluations and samples, which are always of the run's own resolution. Half of it takes a quarter of the time, or
    somewhat more, since texts stay as long as they are."""
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


@dataclass(frozen=True, kw_only=True)
class Human:
    """How people are asked, where `rewards` has human. num_groups is then the number of answers between two updates."""

    ahead: int = 6
    """Groups that are drawn before anybody asks for them, so that nobody waits; they are of older weights the longer
    they wait."""
    reuse: int = 8
    """Earlier groups that train again in every update, with fresh noise, beside the new ones."""
    blind_every: int = 8
    """Answers from one blind comparison of base and trained model, on a prompt that never trains, to the next; 0:
    never."""
    repeat_every: int = 12
    """Answers of a person after which they get one of their groups again, to see how consistent they are; 0: never."""
    share_every: int = 8
    """Answers of a person after which they get a group that another has answered, to see whether they agree; 0:
    never."""


HELD_OUT, TRAINED = "prompts:held_out", "prompts:trained"
"""Sources of `eval_prompts`: parts of a run's own prompts."""
AUTO: Literal["auto"] = "auto"
"""`resume` that creates a run, or continues it where it is there."""
AUTOMATIC = {"auto": "prompts"}
"""`eval_prompts` where none are given. A run puts the set there that its prompts allow: data/own_prompts.py."""
OWN_SETS = {"held_out": HELD_OUT, "trained": TRAINED}
"""What the automatic set may be."""


def has_automatic(sets: Mapping[str, str]) -> bool:
    """Whether the automatic set is among these evaluation sets."""
    return AUTOMATIC.items() <= sets.items()


def in_place_of_automatic(own: Mapping[str, str], sets: Mapping[str, str]) -> dict[str, str]:
    """`sets`, with `own` where the automatic set stands; in their order."""
    each = [own if has_automatic({name: source}) else {name: source} for name, source in sets.items()]
    return {name: source for some in each for name, source in some.items()}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run. With the same config, versions and machine a run repeats bit for bit."""

    out: str | None = None
    """Run folder; None: runs/NAME, or the first free runs/NAME-2, runs/NAME-3..."""
    name: str | None = None
    """What the run is called in folders and reports; None: after its model and its rewards, such as tiny-sd3-ocr."""
    seed: int = 0
    """Seed of everything that is drawn: noise, timesteps, the order of prompts."""
    iterations: int = 100
    """An iteration is one rollout and its updates."""
    max_minutes: float | None = None
    """End after the iteration in which training, evaluations not counted, has taken so long; None: no limit."""

    model: str = ""
    """A diffusers pipeline folder, a Hugging Face id owner/name, or tiny-sd3 or tiny-sd3-words, inside this package."""
    family: str | None = None
    """package.module:Class, a class of your own that derives from Family, for a pipeline of no known family; None: the
    family that the pipeline tells."""
    finetune: Literal["lora", "full"] = "lora"
    """Train LoRA adapters or the whole transformer."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the frozen parts and of the network's arithmetic; trained weights and latents are fp32. auto: bf16
    on a CUDA GPU that has it, else fp32; a run keeps what it began with."""
    base_precision: Literal["auto", "int8", "nf4"] = "auto"
    """How the frozen base of LoRA is stored: int8 or nf4 keep the weights of its blocks in 8 or 4 bits, which changes
    the pictures a little and takes more time; auto: as dtype says."""
    device: str = "auto"
    """auto: CUDA where there is one, else Apple's mps, else the CPU."""
    shard: Literal["none", "full"] = "none"
    """full: the processes of torchrun share the network, its averages, gradients and moments instead of each having all
    of them: less memory, more communication."""
    resolution: int | None = None
    """Side of the images in pixels; None: the model's own."""
    gradient_checkpointing: bool = False
    """Compute activations again in backward: less memory, more time, the same gradients."""
    compile: bool = False
    """Compile the network's blocks with torch.compile: minutes at the start, then faster; the last bits differ."""
    vae_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the VAE: bf16 takes half the memory and less time, and rounds pixels."""
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
    offload: Literal["none", "parts", "auto"] = "none"
    """parts: what is frozen lives in host memory, and the text encoders, the network and the autoencoder visit the GPU
    one after another: the same results, less memory, more time. auto: parts where by dgpo plan all would not fit the
    GPU at once, else none; a run keeps what it began with."""
    averages: Literal["device", "host"] = "device"
    """host: the averages of the trained weights, old and ema, live in host memory and visit the GPU to draw and to
    follow the policy: the same results, less memory, more time."""
    prompt_cache: str | None = None
    """A folder that keeps encoded prompts for later runs; None: in memory, for this run."""

    prompts: str | tuple[str, ...] = ()
    """FILE.txt, FILE.jsonl, hf:NAME[:SPLIT[:COLUMN]], shapes:train[:KINDS], words:train[:TAGS],
    geneval:train[:TAGS], ocr:train[:TAGS]; several of these, which are one list then; or the texts themselves."""
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
    """Train only so many images of each group, half with the largest and half with the smallest advantages; even. A
    group that is not larger trains whole, and of an algorithm that takes a pair, the pair."""
    text_dropout: float = 0.0
    """Share of the trained images whose prompt is replaced by the empty one, so that guidance keeps its meaning."""

    rewards: dict[str, float] = field(default_factory=dict)
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
    prompts:trained. auto=prompts, alone or beside others: a tenth of the run's own prompts, 4 to 32, is held out of
    training, and evaluated as held_out; of fewer than 20 none is, and those that train are evaluated as trained."""
    eval_images_per_prompt: int = 2
    """Images per prompt of an evaluation set, from fixed noise."""
    eval_images: dict[str, int] = field(default_factory=dict)
    """Name of an evaluation set -> its own number of images per prompt, such as fewer for a long list."""
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
    background_saving: bool = False
    """Copy the state of a checkpoint to host memory and write it while training goes on, one at a time. The run ends
    when all are written."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, beside the best one."""
    grace_seconds: float = 30.0
    """Seconds between a scheduler's SIGTERM or SIGUSR1 and the kill. The iteration in progress is finished if it fits,
    else dropped; either way the last finished one is saved by then."""
    rank_timeout_minutes: float = 15.0
    """Minutes that a process waits for another one of the run, which then counts as lost: all save and end."""
    noise_scale_every: int = 5
    """Optimizer steps between measurements of the gradient noise scale; 0: never."""
    license: str = "other"
    """License of the trained weights, written in their model card: they inherit the model's, which is not looked up."""
    push_to_hub: str | None = None
    """owner/name of a Hugging Face repository to which the final weights are uploaded; None: nothing is."""
    hub_private: bool = True
    """Whether a repository that is made for that is private."""
    report: bool = True
    """Write report.html, the page with curves and pictures."""
    trackers: tuple[str, ...] = ()
    """tensorboard, wandb or trackio, beside metrics.jsonl, which is always written; or your own package.module:Class,
    which keeps the protocol of `dgpo.run.trackers.Tracker`."""

    algorithm: Algorithm = DGPO()
    """The paper's constants; or any object that keeps the protocol of `dgpo.Algorithm`."""
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    lora: LoraConfig = LoraConfig()
    human: Human = Human()

    def __post_init__(self) -> None:
        check(self)

    @property
    def called(self) -> str:
        """The run's name, given or made from what it trains."""
        return self.name or automatic_name(self.model, self.rewards, self.offline)

    def images_of(self, eval_set: str) -> int:
        """Images per prompt of an evaluation set."""
        return self.eval_images.get(eval_set, self.eval_images_per_prompt)

    def is_deterministic(self) -> bool:
        """Whether the algorithm's rollouts are those of an ODE solver."""
        if getattr(type(self.algorithm), "sampler", None) is base.Algorithm.sampler:  # which samples without noise
            return True
        return self.algorithm.sampler(0, self.sampling.num_inference_steps, torch.Generator()) is None


def automatic_name(model: str, rewards: Iterable[str], offline: str | None = None) -> str:
    """Such as tiny-sd3-yellow for the reward my_rewards:yellow, or tiny-sd3-groups for the dataset runs/groups."""
    learned = [re.sub(r"^https?://|^.*:(?=[A-Za-z_])", "", reward) for reward in rewards] or [Path(offline or "").name]
    words = [Path(model).name or "model", *learned[:3], *(["more"] if len(learned) > 3 else [])]
    return "-".join(filter(None, (re.sub(r"[^\w.-]+", "-", word).strip("-.") for word in words)))[:80] or "run"


MAY_CHANGE = (
    "out",
    "iterations",
    "max_minutes",
    "eval_every",
    "stop_on_alarm",
    "checkpoint_every",
    "background_saving",
    "keep_checkpoints",
    "grace_seconds",
    "rank_timeout_minutes",
    "report",
    "trackers",
    "num_samples",
    "compile",
    "micro_batch_size",
    "sampling.batch_size",
    "gradient_checkpointing",
    "shard",
    "offload",
    "averages",
    "vae_slicing",
    "license",
    "push_to_hub",
    "hub_private",
    "device",
    "reward_failures",
    "human.ahead",
    "human.reuse",
    "human.blind_every",
    "human.repeat_every",
    "human.share_every",
)
"""Fields that a resumed run may set anew: they do not change what iterations compute, but for the rounding of sums, and
for what people are asked."""


def to_dict(config: Config) -> dict[str, Any]:
    """Plain YAML types; `algorithm` gets its `name` so that it can be read back."""
    values = fields.to_plain(config)
    own = fields.to_plain(config.algorithm) if dataclasses.is_dataclass(config.algorithm) else {}
    return {**values, "algorithm": {"name": path_of(config.algorithm), **own}}


def from_dict(values: Mapping[str, Any], where: str = "config", algorithm: Algorithm | None = None) -> Config:
    """The config that `values` describe; missing fields have their defaults. Strict about names and types.

    algorithm: stands in for the one that is described, which is then not looked at
    """
    try:
        own = _algorithm(values.get("algorithm")) if algorithm is None else algorithm
        return fields.build(Config, {**values, "algorithm": own}, Config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _algorithm(value: Any) -> Algorithm:
    """The algorithm that a config file describes, or the default."""
    values = dict(fields.mapping("algorithm", value))
    name = values.pop("name", "dgpo")
    require(name is not None, f"algorithm.name is empty; give one of {', '.join(known_algorithms())}, or leave it out")
    return make_algorithm(str(name), values, Config)


def load_yaml(path: str | Path, algorithm: Algorithm | None = None) -> Config:
    """Read a config file. algorithm: stands in for the file's own, where nothing trains."""
    return from_dict(read_mapping(path), str(path), algorithm)


def save_yaml(config: Config, path: Path) -> None:
    """Write a config file, whole or not at all."""
    with whole(path) as unfinished:
        unfinished.write_text(dump(to_dict(config)), encoding="utf-8")


def changed_fields(before: Config, after: Config) -> list[str]:
    """Names of the fields that differ, such as `seed` and `optimizer.lr`."""
    return fields.changed(before, after)
