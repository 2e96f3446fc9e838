"""Loading a text-to-image pipeline as a VelocityModel. One file per family; the family is read from the pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from dgpo import distributed
from dgpo.config_checks import require_base, require_offload
from dgpo.distributed.sharded import require_blocks, require_several
from dgpo.errors import UserError, did_you_mean
from dgpo.models.base import Cond, VelocityModel
from dgpo.models.folder import class_of, is_out_of_memory, quiet, read_index, read_pipeline
from dgpo.models.pipeline import Family, PipelineModel
from dgpo.models.quantised import BasePrecision
from dgpo.models.rows import Rows
from dgpo.models.start import copy_start, read_start
from dgpo.models.unread import Unread
from dgpo.models.weights import DEFAULT_LORA, EXTRA_SETS, LoraConfig, WeightSets, lora_scales
from dgpo.utils.devices import (
    DTYPES,
    Precision,
    allow_tf32,
    device_of,
    precision_of,
    release_unused,
    require_precision,
)
from dgpo.utils.imports import import_named, is_path
from dgpo.utils.places import EMBEDDED, locate, model_path

__all__ = [
    "EMBEDDED",
    "Cond",
    "LoraConfig",
    "Rows",
    "VelocityModel",
    "WeightSets",
    "load_model",
    "locate",
    "model_path",
]

FAMILIES = {
    "StableDiffusion3Pipeline": "dgpo.models.sd3:SD3",
    "FluxPipeline": "dgpo.models.flux:Flux",
    "Flux2KleinPipeline": "dgpo.models.flux2:Flux2Klein",
    "QwenImagePipeline": "dgpo.models.qwen_image:QwenImage",
    "ZImagePipeline": "dgpo.models.z_image:ZImage",
    "SanaPipeline": "dgpo.models.sana:Sana",
    "StableDiffusionPipeline": "dgpo.models.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "dgpo.models.sdxl:SDXL",
    "PixArtSigmaPipeline": "dgpo.models.pixart:PixArtSigma",
}
"""The pipeline's class in model_index.json -> its `Family`, imported when first needed."""


def load_model(
    path_or_id: str | Path,
    *,
    finetune: Literal["lora", "full"] = "lora",
    lora: LoraConfig = DEFAULT_LORA,
    sets: Sequence[str] = EXTRA_SETS,
    seed: int = 0,
    device: str = "auto",
    dtype: Literal["auto", "fp32", "bf16"] = "auto",
    base_precision: BasePrecision = "auto",
    resolution: int | None = None,
    max_sequence_length: int | None = None,
    shift: float | None = None,
    negative_prompt: str = "",
    distilled_guidance: float | None = None,
    family: str | type[Family] | None = None,
    encoders_first: bool = False,
    offload: Literal["none", "parts"] = "none",
    averages: Literal["device", "host"] = "device",
    gradient_checkpointing: bool = False,
    compile: bool = False,
    vae_dtype: Precision = "fp32",
    vae_slicing: bool = False,
    vae_tiling: bool = False,
    shard: Literal["none", "full"] = "none",
) -> VelocityModel:
    """Load a diffusers pipeline for training or sampling.

    path_or_id: a pipeline folder, an embedded model ("tiny-sd3", "tiny-sd3-words"), or a Hugging Face id "owner/name"
    finetune: train LoRA adapters, or the whole network in fp32
    sets: which weight sets to keep beside the policy, of ref, old, ema; with "full" each costs a copy of the network
    seed: of the adapters' initial values
    device: "auto" is CUDA where there is one, else Apple's mps, else the CPU
    dtype: precision of the frozen parts and of the network's arithmetic; trained weights are fp32, which a CUDA GPU
        multiplies as TF32. "auto" is bf16 on a CUDA GPU that has it, else fp32
    base_precision: "int8" or "nf4" keeps the frozen base of LoRA in 8 or 4 bits; "auto" is dtype
    resolution, max_sequence_length, shift: None is the pipeline's own
    negative_prompt: what guidance leads away from, in the place of the empty prompt
    distilled_guidance: the guidance that a guidance-distilled network (FLUX.1-dev) is told; None is the pipeline's own
    family: a class that derives from `Family`, or its name as package.module:Class, for a pipeline of no known family;
        None is the family that the pipeline tells
    encoders_first: put the text encoders on the device alone; the rest follows when `free_encoders` lets them go
    offload: "parts" keeps what is frozen in host memory, from where text encoders, network and autoencoder visit the
        device one after another: the same results, less memory, more time
    averages: "host" keeps the sets old and ema in host memory, from where they visit the device when they answer or
        follow the policy: the same results, less memory, more time
    gradient_checkpointing: compute activations again in backward: the same gradients, less memory, more time
    compile: compile the network's blocks, at their first use with each weight set: minutes once, then faster
    vae_dtype: precision of the VAE; bf16 takes half the memory and rounds pixels
    vae_slicing: decode images one by one: the same images, less memory
    vae_tiling: decode large images in tiles that overlap: less memory, slightly other images
    shard: "full" spreads the network and all weight sets over the processes that torchrun has started
    """
    if finetune not in ("lora", "full"):
        raise UserError(f"finetune={finetune!r} is unknown. {did_you_mean(finetune, ('lora', 'full'))}")
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype={dtype!r} is unknown. {did_you_mean(dtype, ('auto', *DTYPES))}")
    if vae_dtype not in DTYPES:
        raise UserError(f"vae_dtype={vae_dtype!r} is unknown. {did_you_mean(vae_dtype, tuple(DTYPES))}")
    if averages not in ("device", "host"):
        raise UserError(f"averages={averages!r} is unknown. {did_you_mean(averages, ('device', 'host'))}")
    for name, value in (("shift", shift), ("distilled_guidance", distilled_guidance)):
        if value is not None and not math.isfinite(value):
            raise UserError(f"{name}={value} cannot work: it must be finite, or None for the pipeline's own")
    require_base(base_precision, finetune, shard)
    require_offload(offload, shard)
    place = _device(device)
    require_precision("dtype", dtype, place)
    require_precision("vae_dtype", vae_dtype, place)
    allow_tf32(place)
    release_unused(place)
    source = locate(path_or_id)
    with quiet():
        index = read_index(source)
        kind = family_of(source, index, family)
        chosen = precision_of(dtype, place)
    if shard == "full":
        if distributed.world_size() == 1:
            place = distributed.init(place)
        require_several(shard, distributed.world_size())
        require_blocks(class_of(index, kind.network))
    with quiet(), _enough_memory(source, place, chosen):
        # a LoRA to continue is loaded into the network itself
        unread = Unread(kind.network) if shard == "full" and lora.start is None else None
        pipeline = read_pipeline(source, index, part_dtypes(kind.network, finetune, chosen), unread)
        adapter = _adapter(kind, pipeline, source, resolution, max_sequence_length)
        _tell_guidance(adapter, distilled_guidance, source)
        starts = finetune == "lora" and lora.start is not None
        start = read_start(pipeline, adapter.network, str(lora.start)) if starts else None
        model = PipelineModel(
            pipeline,
            adapter,
            finetune=finetune,
            lora=lora if start is None else lora.filled(start.lora),
            sets=sets,
            seed=seed,
            device=place,
            dtype=DTYPES[chosen],
            base_precision=base_precision,
            shift=shift,
            negative_prompt=negative_prompt,
            encoders_first=encoders_first,
            offload=offload,
            averages=averages,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            vae_dtype=DTYPES[vae_dtype],
            vae_slicing=vae_slicing,
            vae_tiling=vae_tiling,
            shard=None if shard == "none" else (unread.read if unread else lambda module: None),
        )
        if start is not None:
            copy_start(start, model.weights, model.lora, lora_scales(model.network))
    return model


@contextmanager
def _enough_memory(source: str, device: torch.device, dtype: str) -> Iterator[None]:
    """A model that does not fit says so, and what would."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source} does not fit into the memory of {device} in {dtype} ({first}). dtype bf16 halves the frozen "
            "parts, finetune lora trains few weights, fewer weight sets keep fewer copies; dgpo plan tells what a run "
            "needs before it starts"
        ) from error


def part_dtypes(network: str, finetune: str, precision: str) -> dict[str, torch.dtype]:
    """As they are read, by the part's name, and "default": the VAE, and what trains whole, in fp32."""
    trained = torch.float32 if finetune == "full" else DTYPES[precision]
    return {network: trained, "vae": torch.float32, "default": DTYPES[precision]}


def _adapter(
    family: Any, pipeline: Any, source: str, resolution: int | None, max_sequence_length: int | None
) -> Family:
    try:
        adapter = family(pipeline, resolution, max_sequence_length)
        _ = adapter.pipeline, adapter.latent_shape
        return adapter
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"the configuration of {source} lacks what a {family.__name__} needs, or says it in another way ({error}): "
            "download or save the pipeline again"
        ) from error


def _tell_guidance(family: Any, distilled_guidance: float | None, source: str) -> None:
    if distilled_guidance is None:
        return
    if family.distilled_guidance is None:
        raise UserError(
            f"distilled_guidance={distilled_guidance}: {source} is not told its guidance; use guidance_scale"
        )
    family.distilled_guidance = distilled_guidance


def family_of(source: str, index: dict[str, Any], own: str | type[Family] | None = None) -> Any:
    """The adapter class of a pipeline. own: one that was given for it."""
    if own is not None:
        return _own_family(own)
    name = index.get("_class_name")
    if name not in FAMILIES:
        raise UserError(
            f"{source} is a {name}; supported: {', '.join(FAMILIES)}. Another diffusers pipeline needs a class that "
            "derives from Family (dgpo/models/pipeline.py: encode, predict as noise - x0 at t in [0, 1], latent_shape, "
            "shift, and what differs of guidance, grid and autoencoder), given as family=package.module:Class; any "
            "other model, an object that implements VelocityModel (dgpo/models/base.py), given as "
            "train(config, model=...)."
        )
    return import_named(FAMILIES[name], f"family of {name}")


def _own_family(given: str | type[Family]) -> type[Family]:
    """A family of one's own, which must write what no family shares."""
    if isinstance(given, str) and not is_path(given):
        raise UserError(
            f"family={given!r} is unknown: give package.module:Class, a class that derives from "
            "dgpo.models.pipeline.Family; the built-in families are found by the pipeline alone"
        )
    kind = import_named(given, f"family {given!r}") if isinstance(given, str) else given
    if not (isinstance(kind, type) and Family in kind.__mro__):
        raise UserError(f"family={given!r} is no class that derives from dgpo.models.pipeline.Family")
    lacking = [name for name in ("__init__", "encode", "predict", "shift") if getattr(kind, name) is vars(Family)[name]]
    if lacking:
        raise UserError(f"family={given!r} has no {', '.join(lacking)}, which every family must write")
    return kind


def _device(device: str) -> torch.device:
    device = device_of(device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); try 'auto' or 'cpu'"
        ) from error
    place = torch.device(device)
    if place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)  # so that "cuda" alone, as rewards say, is this one too
    return place
