"""The model that a config names, with every setting of the config that concerns it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from dgpo.config import Config
from dgpo.errors import UserError
from dgpo.models import VelocityModel, load_model


def load_configured(
    config: Config, sets: Iterable[str], device: str | None = None, shard: Literal["none", "full"] = "none"
) -> VelocityModel:
    """The model of a config, without sharding, which only a training has.

    sets: the weight sets beside the policy; device: None is the config's
    """
    if not config.model:
        raise UserError(
            "model is empty: name a pipeline folder or a Hugging Face id (a run has none of its own whose "
            "model was given as an object, in Python)"
        )
    if config.offload == "auto":
        raise RuntimeError("offload=auto is decided before a model is loaded: training/placing.py")
    return load_model(
        config.model,
        finetune=config.finetune,
        lora=config.lora,
        sets=sorted(sets),
        seed=config.seed,
        device=device or config.device,
        dtype=config.dtype,
        base_precision=config.base_precision,
        resolution=config.resolution,
        max_sequence_length=config.max_sequence_length,
        shift=config.sampling.shift,
        negative_prompt=config.sampling.negative_prompt,
        family=config.family,
        distilled_guidance=config.distilled_guidance,
        offload=config.offload,
        averages=config.averages,
        encoders_first=config.free_text_encoders,
        gradient_checkpointing=config.gradient_checkpointing,
        compile=config.compile,
        vae_dtype=config.vae_dtype,
        vae_slicing=config.vae_slicing,
        vae_tiling=config.vae_tiling,
        shard=shard,
    )
