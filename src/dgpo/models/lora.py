"""LoRA files as programs read them.

A file tells how strong its adapter is in different places, and programs look in different ones. diffusers reads the
metadata, ComfyUI and stable-diffusion-webui (A1111) read tensors `NAME.alpha` and take the scale to be 1 where there
are none, and diffusers refuses those tensors for some families. So `alpha / rank` is multiplied into B here, and alpha
is told to be the rank: every program then takes the scale to be 1, which is right.

- `pytorch_lora_weights.safetensors`: diffusers' names, `transformer.LAYER.lora_A.weight`. ComfyUI knows them too, for
  the families that it has itself (SD3, FLUX, Qwen-Image, Z-Image), but for U-Nets it does not.
- `kohya_lora_weights.safetensors`: of a U-Net, once more with the names of kohya's scripts,
  `lora_unet_LAYER.lora_down.weight`, which ComfyUI and A1111 read.
- `adapter_model.safetensors` beside `adapter_config.json`: PEFT's own folder, where diffusers has no loader (PixArt);
  ComfyUI reads the first of the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dgpo.errors import UserError
from dgpo.utils.files import save_tensors

STOCK, KOHYA = "pytorch_lora_weights.safetensors", "kohya_lora_weights.safetensors"
PEFT, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SETTINGS = "lora_adapter_metadata"
"""diffusers' name for PEFT's settings in a file's metadata."""
WRAPPED = "base_model.model."
"""PeftModel wraps the network in two modules, whose names come first in PEFT's own files."""


def layer_of(key: str) -> str:
    """`LAYER.lora_A.weight` -> `LAYER`."""
    return key.rpartition(".lora_")[0]


def folded(tensors: Mapping[str, Tensor], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """The same adapter at scale 1: B times the layer's scale in fp32, which for powers of two rounds nothing.

    tensors: {LAYER.lora_A.weight: ...}; scales: {LAYER: alpha / rank}
    """
    return {
        key: (tensor.float() * scales[layer_of(key)]).to(tensor.dtype) if ".lora_B." in key else tensor
        for key, tensor in tensors.items()
    }


def folded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of PEFT's settings those that say what the adapter is, at scale 1: every alpha is its rank.

    The rest, how it was trained, differs between versions of PEFT, which refuse what they do not know.
    """
    rank, ranks = settings["r"], dict(settings.get("rank_pattern") or {})
    targets = sorted(settings["target_modules"])
    return {"r": rank, "lora_alpha": rank, "rank_pattern": ranks, "alpha_pattern": ranks, "target_modules": targets}


def write_lora(
    folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], network: str, peft: bool
) -> None:
    """Write an adapter of scale 1 with the names that each program reads.

    network: transformer or unet; peft: write PEFT's own folder, since diffusers has no loader
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    if peft:
        (folder / PEFT_CONFIG).write_text(_json({"peft_type": "LORA", **settings}) + "\n", encoding="utf-8")
        save_tensors({f"{WRAPPED}{key}": tensor for key, tensor in tensors.items()}, folder / PEFT, {"format": "pt"})
        return
    told = {"format": "pt", SETTINGS: _json({f"{network}.{key}": value for key, value in settings.items()})}
    save_tensors({f"{network}.{key}": tensor for key, tensor in tensors.items()}, folder / STOCK, told)
    if network == "unet":
        save_tensors(kohya_names(tensors), folder / KOHYA, kohya_metadata(tensors))


def kohya_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter of scale 1 as kohya's scripts name it: down, up, and an alpha equal to the rank."""
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = f"lora_unet_{layer_of(key).replace('.', '_')}"
        if ".lora_A." in key:
            named |= {f"{name}.lora_down.weight": tensor, f"{name}.alpha": torch.tensor(float(tensor.shape[0]))}
        else:
            named[f"{name}.lora_up.weight"] = tensor
    return named


def kohya_metadata(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What A1111 tells the base model by, to list a LoRA under it: told by the width of the text that it reads.

    A file with any other metadata counts as one for SD 1.5 there, so where the width is unknown there is none.
    """
    known = {
        768: {"ss_base_model_version": "sd_v1"},
        1024: {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
        2048: {"ss_base_model_version": "sdxl_base_v1-0"},
    }
    widths = {tensor.shape[1] for key, tensor in tensors.items() if key.endswith("attn2.to_k.lora_A.weight")}
    return known.get(widths.pop(), {}) if len(widths) == 1 else {}


def mend(source: Path, out: Path) -> list[Path]:
    """Write an earlier export anew into the folder `out`, as `write_lora` does; the files that were written."""
    file = _exported(source)
    if out.exists():
        raise UserError(f"{out} exists already and is not replaced; name a new folder")
    tensors, settings, network = _read_export(file)
    scales = _scales(tensors, settings)
    kohya = network != "unet" or file.with_name(KOHYA).is_file()
    if kohya and all(scale == 1 for scale in scales.values()):
        raise UserError(
            f"{file} needs no mending: its alpha is its rank, and every program draws it as strong as it is"
        )
    write_lora(out, folded(tensors, scales), folded_settings(settings), network, peft=file.name == PEFT)
    return sorted(out.iterdir())


def _exported(source: Path) -> Path:
    """The file of an export, given itself or its folder."""
    if source.is_file():
        return source
    found = next((source / name for name in (STOCK, PEFT) if (source / name).is_file()), None)
    if found is None:
        raise UserError(
            f"{source} is no LoRA that dgpo exported: give the file {STOCK} or {PEFT}, or the folder that holds it"
        )
    return found


def _read_export(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """{LAYER.lora_A.weight: tensor}, PEFT's settings, and the network's name."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        stored = load_file(file)
        peft = file.with_name(PEFT_CONFIG) if file.name == PEFT else None
        settings = json.loads(metadata.get(SETTINGS, "{}") if peft is None else peft.read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as a LoRA: {error}") from error
    prefix = next((own for own in ("transformer.", "unet.", WRAPPED) if all(k.startswith(own) for k in stored)), None)
    own = {key.removeprefix(prefix or ""): value for key, value in settings.items()}
    if not stored or prefix is None or not {"r", "lora_alpha", "target_modules"} <= own.keys():
        raise UserError(
            f"{file} does not tell rank and alpha as an export of dgpo does ({SETTINGS} in its metadata, or "
            f"{PEFT_CONFIG} beside it), so that how strong it is meant to be is not known"
        )
    tensors = {key.removeprefix(prefix): tensor for key, tensor in stored.items()}
    return tensors, own, "unet" if prefix == "unet." else "transformer"


def _scales(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, float]:
    """{LAYER: scale} by PEFT's own rule."""
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    scales = {}
    for key, tensor in tensors.items():
        if ".lora_A." in key:
            layer, rank = layer_of(key), tensor.shape[0]
            alpha = patterns.get(get_pattern_key(list(patterns), layer), settings["lora_alpha"])
            scales[layer] = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    return scales


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2, sort_keys=True)
