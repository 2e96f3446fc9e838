"""A tiny random FluxPipeline from the real classes: latents a quarter of the side, 16-token CLIP, T5 by characters."""

from __future__ import annotations

import string
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny import _enliven, _text_encoder, _tokenizer
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

DEV = {"use_dynamic_shifting": True, "shift": 3.0, "base_image_seq_len": 16, "max_image_seq_len": 64}
SCHNELL = {"use_dynamic_shifting": False, "shift": 1.0}


def tiny_flux(seed: int = 0, guidance_embeds: bool = True) -> FluxPipeline:
    """With guidance_embeds as [dev], without as [schnell]; each with its kind of scheduler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        )
        parts: dict[str, Any] = {
            "vae": _vae(),
            "text_encoder": CLIPTextModel(_text_encoder().config).eval(),
            "tokenizer": _tokenizer(),
            "text_encoder_2": _t5(),
            "tokenizer_2": _t5_tokenizer(),
        }
        _enliven(transformer)
    scheduler = FlowMatchEulerDiscreteScheduler(**(DEV if guidance_embeds else SCHNELL))
    pipeline = FluxPipeline(scheduler=scheduler, transformer=transformer, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _vae() -> AutoencoderKL:
    settings: dict[str, Any] = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    }
    return AutoencoderKL(**settings)


def _t5() -> T5EncoderModel:
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, use_cache=False)
    return T5EncoderModel(config).eval()


def _t5_tokenizer() -> T5Tokenizer:
    """One token per letter."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in string.ascii_letters]
    return T5Tokenizer(vocab=special + letters, extra_ids=0, additional_special_tokens=[])
