"""A tiny random StableDiffusion3Pipeline from the real classes: 64 pixels, 8x8x4 latents, 16-token CLIPs, no T5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5,
    "shift_factor": 0.06,
}


def tiny_sd3(seed: int = 0) -> StableDiffusion3Pipeline:
    """Built in a fraction of a second; equal seeds give equal weights. Dual attention and qk_norm as in SD3.5-M."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        vae = AutoencoderKL(**_VAE)
        without_t5: Any = None
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae,
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(),
            text_encoder_2=_text_encoder(),
            tokenizer_2=_tokenizer(),
            text_encoder_3=without_t5,
            tokenizer_3=without_t5,
        )
        _enliven(transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny_sd3(directory: Path, seed: int = 0) -> Path:
    """The same as a folder for `load_model` or `from_pretrained`."""
    tiny_sd3(seed).save_pretrained(directory)
    return directory


def _enliven(transformer: nn.Module) -> None:
    """Freshly made, most of the network hardly acts; larger weights make conditioning and t matter to a test."""
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.add_(0.1 * torch.randn_like(parameter))


def _text_encoder() -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        initializer_factor=5.0,
    )
    return CLIPTextModelWithProjection(config).eval()


def _tokenizer() -> CLIPTokenizer:
    """One token per byte."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=16)
