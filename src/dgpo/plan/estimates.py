"""One config's plan: its geometry, its parameters, its memory and its work; what cannot be told says why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from dgpo.config import Config
from dgpo.errors import UserError
from dgpo.models import locate, quiet
from dgpo.models.pipeline import PipelineModel
from dgpo.models.quantised import count_parameters
from dgpo.plan.memory import Held, held, phases
from dgpo.plan.meta import MetaModel
from dgpo.plan.runs import Runs, runs_of
from dgpo.plan.skeleton import find, how_to_fetch, skeleton, without_vocabulary
from dgpo.plan.speed import Work, work
from dgpo.training import schedule
from dgpo.training.draw import at_rollout_size
from dgpo.training.geometry import Geometry, geometry
from dgpo.utils.devices import Precision, device_of, precision_of

STAND_IN = "a photo of " * 25
"""For prompts that cannot be read: a hundred tokens, where the text's length is that of the prompt."""


@dataclass(frozen=True)
class Part:
    """A network of the pipeline."""

    name: str
    kind: str  # its class
    parameters: int


@dataclass
class Estimate:
    """What is known of a config; `unknown` says why the rest is not."""

    config: Config
    geometry: Geometry
    on_cpu: bool
    prompt: str  # that stands for all
    unknown: str = ""
    offload: str = ""  # why offload=auto is what the config here has
    without_vocabulary: list[str] = field(default_factory=list)  # tokenizers whose files are not there
    model: PipelineModel | None = None  # without weights
    parts: list[Part] = field(default_factory=list)
    trained: int = 0  # parameters
    sets: int = 0  # weight sets that a checkpoint keeps
    held: Held | None = None
    phases: dict[str, int] = field(default_factory=dict)  # bytes
    work: dict[str, Work] = field(default_factory=dict)

    @property
    def peak(self) -> int | None:
        """Bytes, of one process; None where it could not be told."""
        return max(self.phases.values()) if self.phases else None

    @property
    def largest(self) -> str:
        """The phase with the peak; "" where there is none."""
        return max(self.phases, key=self.phases.__getitem__, default="")


def estimate(config: Config, processes: int, on_cpu: bool, prompt: str) -> Estimate:
    """on_cpu: whether tensors and pictures share a memory; prompt: the longest one."""
    config = replace(config, dtype=_precision(config, on_cpu))
    estimated = Estimate(config, geometry(config, processes), on_cpu, prompt)
    model = _built(config, estimated)
    if model is None:
        return estimated
    estimated.model = model
    estimated.without_vocabulary = without_vocabulary(model.pipeline)
    _count(model, config, estimated)
    runs = _run(model, config, estimated)
    if runs is not None and estimated.held is not None:
        rollout_model = at_rollout_size(model, config.sampling)
        estimated.phases = phases(rollout_model, config, estimated.geometry, runs, estimated.held, on_cpu)
        estimated.work = work(config, estimated.geometry, runs)
    return estimated


def _built(config: Config, estimated: Estimate) -> PipelineModel | None:
    try:
        folder = find(config.model)
        if folder is None:
            raise UserError(
                f"the configuration files of {config.model}, some megabytes, are not in the local cache; they come "
                f"with: {how_to_fetch(config.model)}"
            )
        model = skeleton(config, folder)
        model.require_guided(*schedule.guidance_scales(config))
        return model
    except UserError as error:
        estimated.unknown = str(error)
    except Exception as error:  # a class that cannot be made without data, in whatever way it says so
        estimated.unknown = f"the model cannot be built from its configuration files: {_said(error)}"
    return None


def _count(model: PipelineModel, config: Config, estimated: Estimate) -> None:
    for name, part in model.pipeline.components.items():
        if isinstance(part, nn.Module):
            estimated.parts.append(Part(name, type(part).__name__, count_parameters(part)))
    estimated.trained = sum(p.numel() for p in model.weights.parameters())
    estimated.sets = sum(name != "ref" for name in model.weights.names)
    estimated.held = held(model, config, estimated.geometry.processes)


def _run(model: PipelineModel, config: Config, estimated: Estimate) -> Runs | None:
    device = "cpu" if estimated.on_cpu else "cuda"
    try:
        with quiet():
            rollout_model = at_rollout_size(model, config.sampling)
            differs = rollout_model.latent_shape != model.latent_shape and schedule.evaluates(config, 0, last=True)
            evaluated = MetaModel(model, device) if differs else None
            rollouts = MetaModel(rollout_model, device)
            return runs_of(rollouts, config, estimated.geometry, estimated.prompt, evaluated)
    except UserError as error:
        estimated.unknown = str(error)
    except Exception as error:  # the network looks at values, which are not there
        family = type(model.family).__name__
        estimated.unknown = (
            f"the files of {', '.join(estimated.without_vocabulary)} are not all there, and {family} cannot encode "
            f"text without them ({_said(error)}); {_fetch_vocabulary(config)}"
            if estimated.without_vocabulary
            else f"{family} cannot run without data: {_said(error)}"
        )
    return None


def _fetch_vocabulary(config: Config) -> str:
    """What brings the files of tokenizers."""
    if Path(locate(config.model)).is_dir():
        return f"save the pipeline's tokenizers into {locate(config.model)} again"
    return f"they come with: {how_to_fetch(config.model)}"


def text_length(estimated: Estimate) -> str:
    """How long text is taken to be."""
    if not estimated.without_vocabulary:
        return "text as long as the longest prompt"
    names = ", ".join(estimated.without_vocabulary)
    return (
        f"text as long as it may be, for the files of {names} are not all there; {_fetch_vocabulary(estimated.config)}"
    )


def _said(error: Exception) -> str:
    """The error's first line, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _precision(config: Config, on_cpu: bool) -> Precision:
    """What `auto` chooses on the run's device; a GPU that is not here has bf16, as every one that can be named."""
    not_here = not on_cpu and not torch.cuda.is_available()
    auto = "bf16" if not_here else precision_of("auto", "cpu" if on_cpu else "cuda")
    return precision_of(auto if config.dtype == "auto" else config.dtype, "cpu")


def runs_on_cpu(config: Config, gpu: object) -> bool:
    """Whether the run would be on the CPU; a named GPU stands for one."""
    return gpu is None and not device_of(config.device).startswith("cuda")
