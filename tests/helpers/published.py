"""Configuration files of published pipelines, from which `dgpo plan` counts: their real shapes, without any weights.

Shapes are those of each config.json. There are no vocabularies, so texts are taken to be as long as they may be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
)
from transformers import CLIPTextConfig, Qwen2_5_VLConfig, T5Config

VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
SD35M: dict[str, Any] = {  # transformer/config.json of stabilityai/stable-diffusion-3.5-medium
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
_SD35L: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}


def sd35l(folder: Path) -> Path:
    """Stable Diffusion 3.5 large: 8.1 billion parameters beside two CLIPs and T5-XXL."""
    with torch.device("meta"):
        parts = {"transformer": SD3Transformer2DModel(**_SD35L), "vae": AutoencoderKL(**VAE)}
    clip = "CLIPTextModelWithProjection"
    texts = {"text_encoder": (clip, _clip_l()), "text_encoder_2": (clip, _clip_g()), "text_encoder_3": _t5()}
    tokenizers = {"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 512}
    return _save(folder, "StableDiffusion3Pipeline", parts, texts, tokenizers, shift=3.0)


def flux_dev(folder: Path) -> Path:
    """FLUX.1 [dev]: 11.9 billion parameters beside CLIP and T5-XXL."""
    with torch.device("meta"):
        parts = {"transformer": FluxTransformer2DModel(guidance_embeds=True), "vae": AutoencoderKL(**VAE)}
    texts = {"text_encoder": ("CLIPTextModel", _clip_l()), "text_encoder_2": _t5()}
    tokenizers = {"tokenizer": 77, "tokenizer_2": 512}
    return _save(folder, "FluxPipeline", parts, texts, tokenizers, shift=3.0, use_dynamic_shifting=True)


def qwen_image(folder: Path) -> Path:
    """Qwen-Image: 20.4 billion parameters beside Qwen2.5-VL-7B."""
    with torch.device("meta"):
        parts = {"transformer": QwenImageTransformer2DModel(), "vae": AutoencoderKLQwenImage()}
    text = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
    )
    texts = {"text_encoder": ("Qwen2_5_VLForConditionalGeneration", text)}
    return _save(folder, "QwenImagePipeline", parts, texts, {"tokenizer": 1024}, use_dynamic_shifting=True)


def _clip_l() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )


def _clip_g() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )


def _t5() -> tuple[str, T5Config]:
    config = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu", use_cache=False
    )
    return "T5EncoderModel", config


def _save(
    folder: Path, kind: str, parts: dict[str, Any], texts: dict[str, Any], tokenizers: dict[str, int], **scheduler: Any
) -> Path:
    """A pipeline folder without weights and vocabularies."""
    index: dict[str, Any] = {"_class_name": kind, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    FlowMatchEulerDiscreteScheduler(**scheduler).save_pretrained(folder / "scheduler")
    for name, part in parts.items():
        part.save_config(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    for name, (made, config) in texts.items():
        config.save_pretrained(folder / name)
        index[name] = ["transformers", made]
    for name, length in tokenizers.items():
        (folder / name).mkdir()
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        index[name] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
