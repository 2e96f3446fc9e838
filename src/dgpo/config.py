"""A run as one frozen, typed value. Python, YAML and the command line use the same field names.

The algorithm's own constants are the nested `algorithm` dataclass, so that a knob lives beside its formula. Checks of
one field sit where it is used; checks across fields sit here. Unknown and ill-typed fields are errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from dgpo.algorithms import ALGORITHMS, DGPO
from dgpo.core.solvers import SOLVERS
from dgpo.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters, used where finetune is "lora": W + (alpha / rank) * B A, with B zero at the start."""

    rank: int = 32
    """Inner dimension."""
    alpha: int = 64
    """The update is multiplied by alpha / rank."""
    target_modules: tuple[str, ...] | None = None
    """Names of the layers that get an adapter; None: all attention projections of the model's family."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """How A is drawn: normal with deviation 1 / rank, or PEFT's usual uniform."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How rollouts and evaluations are sampled."""

    solver: str = "dpm_solver_pp_2m"
    """dpm_solver_pp_2m, euler or heun."""
    num_inference_steps: int = 10
    """Solver steps."""
    guidance_scale: float = 4.5
    """Classifier-free guidance of rollouts; 1 is none and costs half."""
    eval_guidance_scale: float | None = None
    """Guidance of evaluations and samples; None: as rollouts."""
    shift: float | None = None
    """t' = shift t / (1 + (shift - 1) t) on the grid; None: the model's own."""
    batch_size: int = 64
    """Images sampled, decoded and scored at a time."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and the averages that follow it."""

    lr: float = 3e-4
    """Learning rate after warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly."""
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

    model: str = "tiny-sd3"
    """A diffusers pipeline folder, a Hugging Face id owner/name, or tiny-sd3, which is inside this package."""
    finetune: Literal["lora", "full"] = "lora"
    """Train LoRA adapters or the whole transformer."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen parts and of the network's arithmetic; trained weights and latents are fp32."""
    device: str = "auto"
    """auto: CUDA where there is one, else the CPU."""
    resolution: int | None = None
    """Side of the images in pixels; None: the model's own."""
    gradient_checkpointing: bool = False
    """Compute activations again in backward: less memory, more time, the same gradients."""

    prompts: str | tuple[str, ...] = "shapes:train"
    """FILE.txt, FILE.jsonl, hf:NAME[:SPLIT[:COLUMN]], shapes:train[:KIND,KIND], or the prompts themselves."""
    num_groups: int = 8
    """Prompts of one rollout, over all processes."""
    group_size: int = 16
    """Images per prompt; at least 2, for they are compared with each other."""
    micro_batch_size: int | None = None
    """Images per forward and backward; None: all. Does not change the update."""
    updates_per_rollout: int = 1
    """Optimizer steps on one rollout, each with its own draws of t and noise."""

    rewards: dict[str, float] = field(default_factory=lambda: {"shapes": 1.0})
    """Name of a built-in reward, or package.module:name, with its weight in the sum."""
    eval_rewards: tuple[str, ...] = ()
    """Scores that are watched at evaluations and never trained."""
    eval_prompts: dict[str, str] = field(default_factory=dict)
    """Name of an evaluation set -> where its prompts come from, as in `prompts`."""
    eval_images_per_prompt: int = 2
    """Images per prompt of an evaluation set, from fixed noise."""
    eval_every: int = 10
    """Iterations between evaluations; the first and the last are always evaluated, unless this is 0: never."""
    num_samples: int = 12
    """Pictures of fixed prompts and noise kept at every evaluation."""

    checkpoint_every: int = 10
    """Iterations between checkpoints; the last iteration always leaves one, unless this is 0: never."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, beside the best one."""
    noise_scale_every: int = 5
    """Iterations between measurements of the gradient noise scale; 0: never."""
    trackers: tuple[str, ...] = ()
    """tensorboard, wandb or trackio, beside metrics.jsonl, which is always written."""

    algorithm: DGPO = DGPO()
    """The paper's constants."""
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    lora: LoraConfig = LoraConfig()

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise UserError(
                    f"{name}={getattr(self, name)} cannot work: it must be at least {least}{_WHY.get(name, '')}"
                )
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(f"micro_batch_size={self.micro_batch_size} must be at least 1, or None for the whole batch")
        if not self.rewards:
            raise UserError("rewards is empty: a run needs at least one reward, such as {'shapes': 1.0}")
        if self.sampling.solver not in SOLVERS:
            raise UserError(
                f"sampling.solver={self.sampling.solver!r} is unknown. {did_you_mean(self.sampling.solver, SOLVERS)}"
            )
        if self.sampling.num_inference_steps < 1:
            raise UserError(f"sampling.num_inference_steps={self.sampling.num_inference_steps} must be at least 1")
        if self.optimizer.lr <= 0:
            raise UserError(f"optimizer.lr={self.optimizer.lr} must be above 0")
        a = self.algorithm
        if a.t_sampling == "grid" and a.trunc_steps >= self.sampling.num_inference_steps:
            raise UserError(
                f"algorithm.trunc_steps={a.trunc_steps} needs at least {a.trunc_steps + 1} noise levels, and "
                f"sampling.num_inference_steps={self.sampling.num_inference_steps} has fewer. Lower trunc_steps, raise "
                "the steps, or use algorithm.t_sampling='uniform'"
            )


_AT_LEAST = {
    "iterations": 1,
    "num_groups": 1,
    "group_size": 2,
    "updates_per_rollout": 1,
    "eval_images_per_prompt": 1,
    "eval_every": 0,
    "checkpoint_every": 0,
    "keep_checkpoints": 1,
    "noise_scale_every": 0,
    "num_samples": 0,
}
_WHY = {
    "group_size": ", because the images of a prompt are compared with each other",
    "num_groups": ", one prompt per rollout",
}

MAY_CHANGE = (
    "out",
    "iterations",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "trackers",
    "num_samples",
    "device",
)
"""Fields that a resumed run may set anew: they do not change what the iterations before or after compute."""


def to_dict(config: Config) -> dict[str, Any]:
    """Plain YAML types; `algorithm` gets its `name` so that it can be read back."""
    values = _plain(dataclasses.asdict(config))
    names = {kind: name for name, kind in ALGORITHMS.items()}
    return {**values, "algorithm": {"name": names[type(config.algorithm)], **values["algorithm"]}}


def from_dict(values: Mapping[str, Any], where: str = "config") -> Config:
    """The config that `values` describe; missing fields have their defaults. Strict about names and types."""
    values = dict(values)
    algorithm = dict(values.get("algorithm") or {})
    name = algorithm.pop("name", "dgpo")
    if name not in ALGORITHMS:
        raise UserError(f"{where}: algorithm.name={name!r} is unknown. {did_you_mean(str(name), ALGORITHMS)}")
    values["algorithm"] = algorithm
    _check_names(Config, values, where)
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{where}: {_say(e)}" for e in error.errors())) from None


def load_yaml(path: str | Path) -> Config:
    """Read a config file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config {str(path)!r}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no config: it must hold fields such as `iterations: 100`, one a line")
    return from_dict(values, str(path))


def save_yaml(config: Config, path: Path) -> None:
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def changed_fields(before: Config, after: Config) -> list[str]:
    """Names of the top-level fields that differ."""
    old, new = to_dict(before), to_dict(after)
    return [name for name in new if old[name] != new[name]]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_names(kind: Any, values: Mapping[str, Any], where: str) -> None:
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{where}: unknown field {name!r}. {did_you_mean(str(name), known)}")
        default = known[name].default
        if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
            _check_names(type(default), value, f"{where}: {name}")


def _say(error: Any) -> str:
    cause = (error.get("ctx") or {}).get("error")
    if isinstance(cause, UserError):
        return str(cause)
    place = ".".join(str(part) for part in error["loc"])
    return f"{place}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
