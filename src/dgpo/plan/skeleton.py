"""A model without its weights: the real classes on the meta device, from their configuration files alone.

A pipeline folder, or the copy of a Hugging Face repository in the local cache, tells each part's class and settings;
weights are never read and the network is never asked. Parameters are exactly those of the loaded model, for it is the
same code that makes them, adapters and weight sets included.
"""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dgpo.config import Config, LoraConfig
from dgpo.errors import UserError
from dgpo.models import family_of, locate, part_dtypes, quiet
from dgpo.models.folder import has_vocabulary
from dgpo.models.pipeline import PipelineModel
from dgpo.models.start import read_start
from dgpo.plan.stand_ins import LongestText
from dgpo.training.schedule import loaded_sets
from dgpo.utils.devices import DTYPES, precision_of


def find(model: str) -> Path | None:
    """The folder of a model's configuration files; None for an id that is not in the local cache."""
    source = locate(model)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(source, "model_index.json")
    return Path(index).parent if isinstance(index, str) else None


def how_to_fetch(model: str) -> str:
    """The command that brings an id's configuration and tokenizer files, some megabytes, into the cache."""
    patterns = ("*.json", "*.txt", "*.model", "*.jinja")  # merges.txt, spiece.model, a chat template
    return " ".join([f"hf download {model}", *(f'--include "{pattern}"' for pattern in patterns)])


def without_vocabulary(pipeline: Any) -> list[str]:
    """The tokenizers whose files are not there."""
    return [name for name, part in pipeline.components.items() if isinstance(part, LongestText)]


def skeleton(config: Config, folder: Path) -> PipelineModel:
    """What `load_configured` would load for training, on the meta device."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    with quiet():
        family = family_of(str(folder), index, config.family)
        pipeline = _pipeline(folder, index, family.network, config)
        adapter = family(pipeline, config.resolution, config.max_sequence_length)
        lora = _lora(pipeline, family.network, config)
    with torch.device("meta"):
        return PipelineModel(
            pipeline,
            adapter,
            finetune=config.finetune,
            lora=lora,
            sets=sorted(loaded_sets(config)),
            device="meta",
            dtype=DTYPES[precision_of(config.dtype, "cpu")],
            base_precision=config.base_precision,
            negative_prompt=config.sampling.negative_prompt,
            gradient_checkpointing=config.gradient_checkpointing,
            vae_dtype=DTYPES[config.vae_dtype],
            vae_slicing=config.vae_slicing,
            vae_tiling=config.vae_tiling,
        )


def _lora(pipeline: Any, network: str, config: Config) -> LoraConfig:
    """With the ranks and layers of a LoRA to continue, where it is here: a run takes them from it."""
    start = config.lora.start
    if config.finetune != "lora" or start is None or not Path(start).exists():
        return config.lora
    return config.lora.filled(read_start(pipeline, network, start).lora)


def _pipeline(folder: Path, index: dict[str, Any], network: str, config: Config) -> Any:
    """The pipeline object, each part in the precision that `load_model` gives it."""
    import diffusers

    made = getattr(diffusers, index["_class_name"])
    dtypes = part_dtypes(network, config.finetune, precision_of(config.dtype, "cpu"))
    parts: dict[str, Any] = {}
    for name, value in index.items():
        if isinstance(value, list):
            library, kind = value
            parts[name] = _part(folder / name, library, kind, dtypes.get(name, dtypes["default"]))
        elif not name.startswith("_"):
            parts[name] = value
    if parts.get("safety_checker") is None and "requires_safety_checker" in parts:
        parts["requires_safety_checker"] = False
    wanted = inspect.signature(made).parameters.values()
    left_out = {p.name: None for p in wanted if p.default is p.empty and p.name not in parts}
    return made(**{p.name: parts[p.name] for p in wanted if p.name in parts}, **left_out)


def _part(folder: Path, library: str | None, kind: str | None, dtype: torch.dtype) -> Any:
    """A network on the meta device, a scheduler or a tokenizer; None for what the pipeline does without."""
    if library not in ("diffusers", "transformers") or kind is None:
        return None
    if not folder.is_dir():
        raise UserError(f"the configuration files of {folder.parent} are not all there: {folder.name} is missing")
    made: Any = getattr(import_module(library), kind)
    try:
        if nn.Module in made.__mro__:
            with torch.device("meta"):
                return nn.Module.to(_network(made, library, folder), dtype)
        if "Tokenizer" in kind and not has_vocabulary(folder):
            return LongestText(folder)
        return made.from_pretrained(folder, local_files_only=True) if _is_read(library, kind) else None
    except (OSError, ValueError) as error:
        raise UserError(f"the configuration files of {folder} are not all there: {error}") from error


def _network(made: Any, library: str, folder: Path) -> nn.Module:
    if library == "diffusers":
        return made.from_config(made.load_config(folder, local_files_only=True))
    return made(made.config_class.from_pretrained(folder, local_files_only=True))


def _is_read(library: str, kind: str) -> bool:
    """Schedulers and tokenizers; what prepares images is not needed."""
    return library == "diffusers" or "Tokenizer" in kind
