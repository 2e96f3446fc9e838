"""How other programs read a LoRA, in our own words, from their public sources.

- ComfyUI 0.38 (github.com/comfyanonymous/ComfyUI: comfy/lora.py as of commit 17358c8f, comfy/utils.py of 09708eae,
  comfy/weight_adapter/lora.py of 6f98b150; the single blocks of FLUX.2 since its pull request 11981): a table from
  names in the file to weights of its own networks, or to rows of them where its network has q, k and v in one weight;
  the scale is NAME.alpha / rank, 1 where there is no alpha.
- stable-diffusion-webui 1.10, A1111 (extensions-builtin/Lora/networks.py and network.py): what stands before the first
  dot is turned into a name of the original U-Net; the scale is NAME.alpha / rank, 1 where there is no alpha.

Both are told what a weight is called in a diffusers network, so that the answer can be compared with diffusers itself:
a program's `Place` is the weight of its own network, and the rows of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Deltas = dict[str, Tensor]
"""{layer of the diffusers network: what is added to its weight}."""


class Place(NamedTuple):
    """A weight of a program's own network, and which of its equal parts along the rows."""

    weight: str
    part: int = 0
    parts: int = 1


def comfyui_sd3(layer: str) -> tuple[str, Place]:
    """The name in a file under which ComfyUI awaits a layer, and the place of its own network."""
    block, rest = _block(layer, "transformer_blocks")
    fused = {
        **{f"attn.{name}": Place(f"joint_blocks.{block}.x_block.attn.qkv", i, 3) for i, name in enumerate(_QKV)},
        **{f"attn2.{name}": Place(f"joint_blocks.{block}.x_block.attn2.qkv", i, 3) for i, name in enumerate(_QKV)},
        **{f"attn.{name}": Place(f"joint_blocks.{block}.context_block.attn.qkv", i, 3) for i, name in enumerate(_ADD)},
        "attn.to_out.0": Place(f"joint_blocks.{block}.x_block.attn.proj"),
        "attn2.to_out.0": Place(f"joint_blocks.{block}.x_block.attn2.proj"),
        "attn.to_add_out": Place(f"joint_blocks.{block}.context_block.attn.proj"),
    }
    return f"transformer.{layer}", fused[rest]


def comfyui_flux(layer: str) -> tuple[str, Place]:
    if layer.startswith("single_"):
        block, rest = _block(layer, "single_transformer_blocks")
        # q, k, v and the wider MLP lie in one weight: 3 + 4 parts of the hidden size
        places = {f"attn.{name}": Place(f"single_blocks.{block}.linear1", i, 7) for i, name in enumerate(_QKV)}
        return f"transformer.{layer}", places[rest]
    block, rest = _block(layer, "transformer_blocks")
    places = {
        **{f"attn.{name}": Place(f"double_blocks.{block}.img_attn.qkv", i, 3) for i, name in enumerate(_QKV)},
        **{f"attn.{name}": Place(f"double_blocks.{block}.txt_attn.qkv", i, 3) for i, name in enumerate(_ADD)},
        "attn.to_out.0": Place(f"double_blocks.{block}.img_attn.proj"),
        "attn.to_add_out": Place(f"double_blocks.{block}.txt_attn.proj"),
    }
    return f"transformer.{layer}", places[rest]


def comfyui_flux2(layer: str) -> tuple[str, Place]:
    """As FLUX.1, whose network it has; single blocks are two weights in diffusers as well."""
    if not layer.startswith("single_"):
        return comfyui_flux(layer)
    block, rest = _block(layer, "single_transformer_blocks")
    places = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
    return f"transformer.{layer}", Place(f"single_blocks.{block}.{places[rest]}")


def comfyui_z_image(layer: str) -> tuple[str, Place]:
    block, _, name = layer.rpartition(".attention.")
    places = {own: Place(f"{block}.attention.qkv", i, 3) for i, own in enumerate(_QKV)}
    return f"transformer.{layer}", places.get(name) or Place(f"{block}.attention.out")


def comfyui_qwen_image(layer: str) -> tuple[str, Place]:
    """Its network has the same names."""
    return f"transformer.{layer}", Place(layer)


def comfyui_pixart(layer: str) -> tuple[str, Place]:
    block, rest = _block(layer, "transformer_blocks")
    places = {
        **{f"attn1.{name}": Place(f"blocks.{block}.attn.qkv", i, 3) for i, name in enumerate(_QKV)},
        "attn1.to_out.0": Place(f"blocks.{block}.attn.proj"),
        "attn2.to_q": Place(f"blocks.{block}.cross_attn.q_linear"),
        "attn2.to_k": Place(f"blocks.{block}.cross_attn.kv_linear", 0, 2),
        "attn2.to_v": Place(f"blocks.{block}.cross_attn.kv_linear", 1, 2),
        "attn2.to_out.0": Place(f"blocks.{block}.cross_attn.proj"),
    }
    return f"base_model.model.{layer}", places[rest]


def comfyui_unet(layer: str) -> tuple[str, Place]:
    """Its table goes from diffusers' names, joined by underscores, to those of the original U-Net."""
    kind, *rest = layer.split(".")
    if kind == "mid_block":
        place = f"middle_block.1.{'.'.join(rest[2:])}"
    else:
        level, _, place_in_level, *inner = rest
        start = 1 if kind == "down_blocks" else 0  # the first input block is a convolution
        number = start + 3 * int(level) + int(place_in_level)  # a level has two resnets and a downsampler, or three
        place = f"{'input' if start else 'output'}_blocks.{number}.1.{'.'.join(inner)}"
    return f"lora_unet_{layer.replace('.', '_')}", Place(place)


_QKV, _ADD = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def comfyui_deltas(
    file: Mapping[str, Tensor], layers: Mapping[str, Tensor], name_of: Callable[[str], tuple[str, Place]]
) -> tuple[Deltas, list[str]]:
    """What ComfyUI adds to each layer's weight, and the file's tensors that it does not read.

    layers: {layer of the diffusers network: its weight}. Rows of a fused weight are read back as the layers they are.
    """
    fused: dict[str, Tensor] = {}
    used: set[str] = set()
    places = {layer: name_of(layer) for layer in layers}
    for layer, (name, place) in places.items():
        rows = len(layers[layer])
        fused.setdefault(place.weight, torch.zeros(rows * place.parts, layers[layer][0].numel()))
        for up, down in (("lora_up", "lora_down"), ("lora_B", "lora_A")):
            if f"{name}.{up}.weight" in file:
                delta = _delta(file, name, up, down, used)
                fused[place.weight][rows * place.part : rows * (place.part + 1)] += delta
                break
    found = {layer: fused[place.weight].chunk(place.parts)[place.part] for layer, (_, place) in places.items()}
    return found, sorted(file.keys() - used)


def a1111_deltas(file: Mapping[str, Tensor], layers: Mapping[str, Tensor]) -> tuple[Deltas, list[str]]:
    """The same for stable-diffusion-webui with a U-Net of two resnets a level, as SD 1.5, 2 and XL have."""
    modules = {f"diffusion_model_{comfyui_unet(layer)[1].weight.replace('.', '_')}": layer for layer in layers}
    found = {layer: torch.zeros_like(weight).flatten(1) for layer, weight in layers.items()}
    used: set[str] = set()
    for name in dict.fromkeys(key.partition(".")[0] for key in file):
        layer = modules.get(_a1111_name(name))
        if layer is not None and f"{name}.lora_up.weight" in file:
            found[layer] += _delta(file, name, "lora_up", "lora_down", used)
    return found, sorted(file.keys() - used)


def _a1111_name(name: str) -> str:
    """lora_unet_down_blocks_1_attentions_0_... -> diffusion_model_input_blocks_4_1_..."""
    if match := re.match(r"lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)", name):
        return f"diffusion_model_input_blocks_{1 + int(match[1]) * 3 + int(match[2])}_1_{match[3]}"
    if match := re.match(r"lora_unet_mid_block_attentions_(\d+)_(.+)", name):
        return f"diffusion_model_middle_block_1_{match[2]}"
    if match := re.match(r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)", name):
        return f"diffusion_model_output_blocks_{int(match[1]) * 3 + int(match[2])}_1_{match[3]}"
    return name


def _delta(file: Mapping[str, Tensor], name: str, up: str, down: str, used: set[str]) -> Tensor:
    """scale * up @ down in fp32, for both programs."""
    b, a = file[f"{name}.{up}.weight"].float(), file[f"{name}.{down}.weight"].float()
    used |= {f"{name}.{up}.weight", f"{name}.{down}.weight"}
    scale = 1.0
    if f"{name}.alpha" in file:
        used.add(f"{name}.alpha")
        scale = file[f"{name}.alpha"].item() / len(a)
    return scale * (b.flatten(1) @ a.flatten(1))


def _block(layer: str, blocks: str) -> tuple[str, str]:
    """Number and the rest of `BLOCKS.NUMBER.REST`."""
    number, _, rest = layer.removeprefix(f"{blocks}.").partition(".")
    return number, rest
