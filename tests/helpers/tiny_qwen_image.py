"""A tiny random QwenImagePipeline from the real classes: latents a quarter of the side, Qwen2.5-VL by characters.

The tokenizer knows the words of the prompt template, whose opening is 34 tokens as with the real one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tiny import _enliven
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [
    "system",
    "user",
    "assistant",
    "Describe",
    "Ġthe",
    "Ġimage",
    "Ġby",
    "Ġdetailing",
    "Ġcolor",
    "Ġshape",
    "Ġsize",
    "Ġtexture",
    "Ġquantity",
    "Ġtext",
    "Ġspatial",
    "Ġrelationships",
    "Ġof",
    "Ġobjects",
    "Ġand",
    "Ġbackground",
]

STRETCHED = {"base_image_seq_len": 16, "max_image_seq_len": 64, "max_shift": 0.9, "shift_terminal": 0.02}
LIGHTNING = {"base_shift": math.log(3), "max_shift": math.log(3)}


def tiny_qwen_image(seed: int = 0, scheduler: dict[str, Any] = STRETCHED) -> QwenImagePipeline:
    """scheduler: as in the base model, whose grid is stretched, or as in its few-step relatives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[-0.5, 0.25, 0.0, 1.0],
            latents_std=[2.0, 1.5, 0.5, 1.0],
        )
        text_encoder = _text_encoder()
        _enliven(transformer)
        _enliven(vae)
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **scheduler),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(),
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _text_encoder() -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 512,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "initializer_range": 0.5,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 16},
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _tokenizer() -> Qwen2Tokenizer:
    """One token per byte, and per word of the template."""
    pairs = dict.fromkeys((word[:end], word[end]) for word in WORDS for end in range(1, len(word)))
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in pairs), *SPECIAL]
    merges: list[Any] = list(pairs)
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        additional_special_tokens=SPECIAL[1:],
    )
