"""Tiny random pipelines of the variance-preserving families, from the real classes: 64 pixels, 8x8x4 latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from parity import PROMPTS, assert_same_pictures, generators
from tiny import _VAE, _enliven, _text_encoder, _tokenizer
from tiny_flux import _t5, _t5_tokenizer
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dgpo.core.solvers import solve
from dgpo.models import load_model
from dgpo.models.vp import vp_scale

SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
"""The noise schedule of Stable Diffusion."""
LINEAR: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
"""That of PixArt."""
ZERO_SNR: dict[str, Any] = SD | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def ddim(**settings: Any) -> Any:
    """As Stable Diffusion's checkpoints have it: by default diffusers clips what the network says to [-1, 1]."""
    return DDIMScheduler(clip_sample=False, **settings)


def tiny_sd(scheduler: Any = None, seed: int = 0, **unet_settings: Any) -> StableDiffusionPipeline:
    """Without a safety checker, as many checkpoints are saved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        without: Any = None
        unet = _unet(**unet_settings)
        pipeline = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_encoder().config).eval(),
            tokenizer=_tokenizer(),
            unet=unet,
            scheduler=scheduler or ddim(**SD),
            safety_checker=without,
            feature_extractor=without,
            requires_safety_checker=False,
        )
        _enliven(unet)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_sdxl(scheduler: Any = None, seed: int = 0, **settings: Any) -> StableDiffusionXLPipeline:
    """settings: of the pipeline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = _unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
            use_linear_projection=True,
        )
        quieter = _text_encoder().config
        quieter.initializer_factor = 1.0  # its hidden states are read before the last norm: large, they make chaos
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(quieter).eval(),
            text_encoder_2=CLIPTextModelWithProjection(quieter).eval(),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=unet,
            scheduler=scheduler or ddim(**SD),
            add_watermarker=False,
            **settings,
        )
        _enliven(unet)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_pixart(scheduler: Any = None, seed: int = 0, **transformer_settings: Any) -> PixArtSigmaPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_size": 8,
            "use_additional_conditions": False,
        }
        transformer = PixArtTransformer2DModel(**settings | transformer_settings)
        pipeline = PixArtSigmaPipeline(
            tokenizer=_t5_tokenizer(),
            text_encoder=_t5(),
            vae=_vae(),
            transformer=transformer,
            scheduler=scheduler or ddim(**LINEAR),
        )
        _enliven(transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def both(folder: Path, stock: Any, **settings: Any) -> tuple[Any, Any]:
    """The pipeline, and ours as loaded from a folder where it was saved."""
    stock.save_pretrained(folder)
    return stock, load_model(folder, device="cpu", sets=(), **settings)


def stock_noise(model: Any, n: int = 3) -> Tensor:
    """Unit noise, as a stock call takes it. (n, C, h, w)."""
    return torch.stack([torch.randn(model.latent_shape, generator=generator) for generator in generators(n)])


@torch.no_grad()
def stock_walk(
    model: Any, noise: Tensor, num_steps: int, guidance_scale: float, solver: str = "euler", prompts: Any = PROMPTS
) -> Tensor:
    """Latents as a stock call has them at the end, from the same unit noise: the scheduler's grid in flow coordinates.

    Both ends are scaled by their own level; the last is 1 unless the scheduler stops short of t = 0.
    """
    cond, sigmas = model.encode(prompts), model.scheduler_sigmas(num_steps)
    start, end = vp_scale(sigmas[[0, -1]])
    velocity = lambda x, t: model.velocity(x, t, cond, guidance_scale)
    return solve(velocity, noise / start, sigmas, solver) * end


def assert_stock_pictures(
    stock: Any,
    model: Any,
    guidance_scale: float,
    num_steps: int = 4,
    solver: str = "euler",
    atol: float = 1e-4,
    **settings: Any,
) -> Tensor:
    """Three prompts from the same noise through both; returns the pictures. settings: of the stock call."""
    noise = stock_noise(model)
    ours = model.decode(stock_walk(model, noise, num_steps, guidance_scale, solver))
    side = model.latent_shape[1] * 8
    expected = stock(
        prompt=PROMPTS,
        latents=noise,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        height=side,
        width=side,
        output_type="pt",
        **settings,
    ).images
    assert_same_pictures(ours, expected, (3, 3, side, side))
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol)
    return expected


def perturb(weights: Any, name: str = "policy") -> None:
    """Move a set away from where it started. `tensors` shares storage, so adding in place changes the network."""
    generator = torch.Generator().manual_seed(0)
    for tensor in weights.tensors(name).values():
        tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))


def _unet(**settings: Any) -> UNet2DConditionModel:
    own: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**own | settings)


def _vae() -> AutoencoderKL:
    """With the quantising convolutions that the older autoencoders have."""
    own: dict[str, Any] = {"use_quant_conv": True, "use_post_quant_conv": True, "shift_factor": None}
    settings: dict[str, Any] = _VAE | own | {"scaling_factor": 0.18215}
    return AutoencoderKL(**settings)
