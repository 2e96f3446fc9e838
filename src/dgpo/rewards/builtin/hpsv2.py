"""Human Preference Score v2.1: which image of a prompt people prefer (Wu et al. 2023, arXiv 2306.09341).

    score = cos(image embedding, text embedding)     of a CLIP ViT-H/14 trained on the HPD v2 preferences

Published tables show it times 100 (14 to 33). Scores of v2.0 and v2.1, or of different prompts, are not comparable.
The published file holds the weights under open_clip's names; they are renamed for transformers, whose CLIPModel
computes the same. Deviations: fp32 by default, where the published code runs under fp16 autocast; pixels are resized
as 8-bit pictures with antialiasing, where the published code resizes floats, with antialiasing or not by the version
of torchvision; prompts are tokenised without repairing broken Unicode (ftfy).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.builtin.towers import Towers
from dgpo.rewards.builtin.weights import fill, from_pretrained, is_file, read_tensors

_NAMES = {  # of single tensors, open_clip -> transformers
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
}
_PARTS = {  # of modules that have a weight and a bias
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


class HPSv2:
    """images (B, 3, H, W) in [0, 1] -> (B,) in [-1, 1].

    weights: the published file, or a folder or hub id of a CLIPModel of transformers. processor: folder or id of
    tokenizer, image processor and, for the published file, the model's config. The others are those of `Towers`.
    """

    def __init__(
        self,
        weights: str = "xswu/HPSv2/HPS_v2.1_compressed.pt",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        load = self._from_file if is_file(weights) else None
        self.towers = Towers("hpsv2", weights, processor, device=device, dtype=dtype, batch_size=batch_size, load=load)

    def check_row(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Whether the end of a prompt is cut."""
        return self.towers.check_row(prompt)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return self.towers.cosine(images, prompts)

    def _from_file(self, weights: str) -> Any:
        from transformers import CLIPConfig, CLIPModel

        tensors = renamed(read_tensors(weights))
        model = CLIPModel(from_pretrained(CLIPConfig, self.towers.processor, "hpsv2"))
        fill(model, tensors, weights)
        return model


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP state dict of open_clip under the names of transformers; one that has these already is returned as is."""
    if "text_model.final_layer_norm.weight" in tensors:
        return tensors
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if name in _NAMES:
            ours[_NAMES[name]] = tensor.T.contiguous() if name.endswith("proj") or "projection" in name else tensor
        elif module in _PARTS:
            ours[f"{_PARTS[module]}.{kind}"] = tensor
        else:
            ours |= _of_block(name, tensor)
    return ours


def _of_block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of a transformer block; open_clip stacks the projections of query, key and value."""
    match = _BLOCK.fullmatch(name)
    if not match:
        raise UserError(f"the weights of hpsv2 hold {name!r}, which no CLIP of open_clip has")
    tower, layer, module, kind = match.groups()
    prefix = f"{'vision' if tower else 'text'}_model.encoder.layers.{layer}"
    if module == "attn.in_proj":
        return {f"{prefix}.self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", tensor.chunk(3))}
    if module not in _IN_BLOCK:
        raise UserError(f"the weights of hpsv2 hold {name!r}, which no CLIP of open_clip has")
    return {f"{prefix}.{_IN_BLOCK[module]}.{kind}": tensor}
