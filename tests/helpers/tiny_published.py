"""Tiny random stand-ins for published weights, in their own formats; equal seeds give equal values."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import _tokenizer
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip import CLIPImageProcessor

Shapes = dict[str, tuple[int, ...]]


def clip_config(**text: int) -> CLIPConfig:
    """The sizes of `open_clip_shapes`: 28 pixels in patches of 14, 16 tokens, embeddings of 24."""
    return CLIPConfig(
        text_config={
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192,
            "max_position_embeddings": 16, "hidden_act": "gelu", **text,
        },
        vision_config={
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
            "image_size": 28, "patch_size": 14, "hidden_act": "gelu",
        },
        projection_dim=24,
    )  # fmt: skip


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A folder with a random CLIP of 28-pixel images, a tokenizer of letters and an image processor."""
    tokenizer = _tokenizer()
    last = len(tokenizer) - 1
    config = clip_config(vocab_size=len(tokenizer), bos_token_id=last - 1, eos_token_id=last, pad_token_id=last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # freshly made, it hardly tells two images apart
        model.logit_scale.data.fill_(1.7)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def values(shapes: Shapes) -> dict[str, Tensor]:
    """Normal values of deviation 0.2, in the order of the names; around 1 for the weights of layer norms."""
    rng, found = torch.Generator().manual_seed(0), {}
    for name in sorted(shapes):
        normal = torch.randn(shapes[name], generator=rng) * 0.2
        is_norm = "norm" in name.lower() or ".ln_" in name or name.startswith("ln_")
        found[name] = normal + 1 if is_norm and name.endswith("weight") else normal
    return found


def open_clip_shapes(vocabulary: int = 50) -> Shapes:
    """Names and shapes of open_clip's CLIP: image width 64 and text width 48, two blocks each, 24 out."""
    shapes: Shapes = {
        "logit_scale": (), "positional_embedding": (16, 48), "text_projection": (48, 24),
        "token_embedding.weight": (vocabulary, 48), "visual.class_embedding": (64,), "visual.proj": (64, 24),
        "visual.positional_embedding": (5, 64), "visual.conv1.weight": (64, 3, 14, 14),
    }  # fmt: skip
    shapes |= _pairs({"ln_final": (48,), "visual.ln_pre": (64,), "visual.ln_post": (64,)})
    for tower, width in (("", 48), ("visual.", 64)):
        for layer in range(2):
            block = f"{tower}transformer.resblocks.{layer}."
            parts = {
                "ln_1": (width,), "ln_2": (width,), "attn.out_proj": (width, width),
                "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width),
            }  # fmt: skip
            shapes |= _pairs({block + name: shape for name, shape in parts.items()})
            shapes |= {block + "attn.in_proj_weight": (3 * width, width), block + "attn.in_proj_bias": (3 * width,)}
    return shapes


def imagereward_shapes(vocabulary: int = 50) -> Shapes:
    """Names and shapes of ImageReward.pt: image width 128 in two heads, text width 64, two blocks each, 32 pixels."""
    eye, reader = "blip.visual_encoder.", "blip.text_encoder."
    shapes: Shapes = {
        eye + "cls_token": (1, 1, 128), eye + "pos_embed": (1, 5, 128),
        reader + "embeddings.word_embeddings.weight": (vocabulary, 64),
        reader + "embeddings.position_embeddings.weight": (40, 64),
    }  # fmt: skip
    pairs: Shapes = {
        eye + "patch_embed.proj": (128, 3, 16, 16), eye + "norm": (128,), reader + "embeddings.LayerNorm": (64,)
    }  # fmt: skip
    for layer in range(2):
        block = f"{eye}blocks.{layer}."
        pairs |= {block + name: (128,) for name in ("norm1", "norm2")}
        pairs |= {block + "attn.qkv": (384, 128), block + "attn.proj": (128, 128)}
        pairs |= {block + "mlp.fc1": (512, 128), block + "mlp.fc2": (128, 512)}
        block = f"{reader}encoder.layer.{layer}."
        for attention, width in (("attention", 64), ("crossattention", 128)):
            pairs |= {f"{block}{attention}.self.{name}": (64, width) for name in ("key", "value")}
            pairs |= {f"{block}{attention}.self.query": (64, 64), f"{block}{attention}.output.dense": (64, 64)}
            pairs |= {f"{block}{attention}.output.LayerNorm": (64,)}
        pairs |= {block + "intermediate.dense": (96, 64), block + "output.dense": (64, 96)}
        pairs |= {block + "output.LayerNorm": (64,)}
    mlp = {0: (1024, 64), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    pairs |= {f"mlp.layers.{place}": shape for place, shape in mlp.items()}
    return shapes | _pairs(pairs)


def imagereward_values(vocabulary: int = 50) -> dict[str, Tensor]:
    found = values(imagereward_shapes(vocabulary))
    return {n: v / 2 if n.startswith("mlp.") and n.endswith("weight") else v for n, v in found.items()}


def _pairs(weights: Shapes) -> Shapes:
    """A weight of this shape and a bias as long as its first side, for each module."""
    found: Shapes = {}
    for name, shape in weights.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found
