"""The embedded models before training: a genuine StableDiffusion3Pipeline with small parts and no T5."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from dgpo.worlds.common.ground import IMAGE_SIZE
from dgpo.worlds.common.tokenizer import CONTEXT

LATENT_CHANNELS, DOWNSAMPLING, PATCH = 4, 4, 2
TEXT_WIDTH = 64


def build_pipeline(
    tokenizer: CLIPTokenizer, seed: int = 0, width: int = 128, layers: int = 4, shift: float = 3.0
) -> StableDiffusion3Pipeline:
    """Random weights from `seed`; 64x64 images, 16x16x4 latents, patch 2, two three-layer CLIP text encoders."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae: Any = _autoencoder()  # the pipeline takes any autoencoder, and no T5, whatever its annotations say
        absent: Any = None
        return StableDiffusion3Pipeline(
            transformer=_transformer(width, layers),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
            vae=vae,
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=_text_encoder(tokenizer),
            tokenizer_2=tokenizer,
            text_encoder_3=absent,
            tokenizer_3=absent,
        )


def _transformer(width: int, layers: int) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=IMAGE_SIZE // DOWNSAMPLING,
        patch_size=PATCH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=IMAGE_SIZE // DOWNSAMPLING // PATCH,
        qk_norm="rms_norm",
    )


def _autoencoder() -> AutoencoderTiny:
    width = (32, 32, 32)
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(2, 1, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _text_encoder(tokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
