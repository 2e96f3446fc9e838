"""Continue a LoRA: one that stock diffusers reads becomes the start of every trained weight set.

`ref` stays the pretrained network without it. Whatever does not fit the model or the LoRA settings is refused, for a
LoRA that is half loaded would train on in silence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from dgpo.config import LoraConfig
from dgpo.errors import UserError


def start_from_lora(model: Any, config: LoraConfig) -> None:
    """Copy the LoRA at `config.start`, a folder, a file or a hub id, into all sets of a `PipelineModel`."""
    tensors, settings = _read(model.pipeline, str(config.start), model.family.network)
    _require_same(config, tensors, settings)
    for name in model.weights.names:
        if name != "ref":
            try:
                model.weights.load(name, tensors)
            except UserError as error:
                raise UserError(f"lora.start={config.start!r} does not fit this model: {error}") from None


def is_hub_id(source: str) -> bool:
    """Whether it has the form owner/name."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) is not None


def _read(pipeline: Any, source: str, network: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """{layer.lora_A.weight: tensor} and the adapter's own settings, as far as the file tells them."""
    if not hasattr(pipeline, "lora_state_dict"):
        raise UserError(f"lora.start={source!r}: diffusers reads no LoRA for a {type(pipeline).__name__}")
    if not Path(source).exists() and not is_hub_id(source):
        raise UserError(f"lora.start={source!r}: there is no such folder or file, and it is no id owner/name")
    try:
        found = type(pipeline).lora_state_dict(source, return_lora_metadata=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"lora.start={source!r} cannot be read as a LoRA: {error}") from error
    state, *rest = found if isinstance(found, tuple) else (found,)
    others = {key.partition(".")[0] for key in state} - {network}
    if others or not state:
        raise UserError(
            f"lora.start={source!r} holds adapters of {', '.join(sorted(others)) or 'nothing'}; only those of the "
            f"{network} are trained here"
        )
    told = next((part for part in reversed(rest) if isinstance(part, dict)), {}) or {}
    settings = {key.removeprefix(f"{network}."): value for key, value in told.items()}
    return {key.removeprefix(f"{network}."): value for key, value in state.items()}, settings


def _require_same(config: LoraConfig, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Rank and alpha must be told to the config as they are: it is the record of the run."""
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if ".lora_A." in key}
    alpha = settings.get("lora_alpha", next(iter(ranks), None))  # diffusers scales by 1 where a file tells no alpha
    if ranks != {config.rank} or alpha != config.alpha:
        raise UserError(
            f"lora.start={config.start!r} has rank {'/'.join(map(str, sorted(ranks)))} and alpha {alpha}; the config "
            f"says lora.rank={config.rank} and lora.alpha={config.alpha}. Set them to the file's"
        )
