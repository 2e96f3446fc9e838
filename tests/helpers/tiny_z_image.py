"""A tiny random ZImagePipeline from the real classes: 8 pixels a latent, a chat template, one text token per byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tiny import _VAE, _enliven
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_z_image(seed: int = 0) -> ZImagePipeline:
    """Built in a fraction of a second; equal seeds give equal weights. Every kind of block of the real one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[520, 16, 16],
        )
        tokenizer: Any = _tokenizer()
        pipeline = ZImagePipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=AutoencoderKL(**_VAE),
            text_encoder=_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
        )
        _enliven(transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny_z_image(directory: Path, seed: int = 0) -> Path:
    """The same as a folder for `load_model` or `from_pretrained`."""
    tiny_z_image(seed).save_pretrained(directory)
    return directory


def _text_encoder(vocab_size: int) -> Qwen3Model:
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
    )
    return Qwen3Model(config).eval()


def _tokenizer() -> Qwen2Tokenizer:
    vocab = {token: index for index, token in enumerate([*sorted(ByteLevel.alphabet()), "<|endoftext|>"])}
    marks = ["<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=marks, chat_template=_TEMPLATE)
