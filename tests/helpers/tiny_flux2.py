"""A tiny random Flux2KleinPipeline from the real classes: latents a quarter of the side, one text token per byte."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tiny import _enliven
from tiny_z_image import _tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM


def tiny_flux2(seed: int = 0, is_distilled: bool = False) -> Flux2KleinPipeline:
    """With every kind of block of the real one; the text encoder is as deep as the layers that are read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        tokenizer: Any = _tokenizer()
        parts: dict[str, Any] = {"vae": _vae(), "text_encoder": _text_encoder(len(tokenizer)), "tokenizer": tokenizer}
        _enliven(transformer)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipeline = Flux2KleinPipeline(scheduler=scheduler, transformer=transformer, is_distilled=is_distilled, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _vae() -> AutoencoderKLFlux2:
    """Its patches have means and deviations that differ, as those of a trained one."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    assert vae.bn.running_mean is not None
    assert vae.bn.running_var is not None
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.3, 2.0)
    return vae.eval()


def _text_encoder(vocab_size: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        initializer_range=0.5,
    )
    return Qwen3ForCausalLM(config).eval()
