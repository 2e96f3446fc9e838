"""Every family's tiny pipeline, and what the contract of the families must know to ask it and its stock call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from parity import PROMPTS, our_images
from peft import PeftModel
from tiny import tiny_sd3
from tiny_flux import tiny_flux
from tiny_flux2 import tiny_flux2
from tiny_qwen_image import tiny_qwen_image
from tiny_sana import tiny_sana
from tiny_vp import stock_walk, tiny_pixart, tiny_sd, tiny_sdxl
from tiny_z_image import tiny_z_image
from torch import Tensor
from torch.nn.functional import pixel_unshuffle


@torch.no_grad()
def vp_images(model: Any, noise: Tensor, num_steps: int, guidance_scale: float, prompts: list[str]) -> Tensor:
    """As `our_images`, from the unit noise of a stock call."""
    return model.decode(stock_walk(model, noise, num_steps, guidance_scale, prompts=prompts))


def round_trip(vae: Any, images: Tensor) -> Tensor:
    """Images in [0, 1] through the autoencoder and back."""
    return vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5


def _deep_round_trip(vae: Any, images: Tensor) -> Tensor:
    return vae.decode(vae.encode(images * 2 - 1).latent).sample / 2 + 0.5


def _video_round_trip(vae: Any, images: Tensor) -> Tensor:
    return vae.decode(vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()).sample[:, :, 0] / 2 + 0.5


def _load_lora(stock: Any, folder: Path) -> None:
    stock.load_lora_weights(folder)


def _load_peft(stock: Any, folder: Path) -> None:
    stock.transformer = PeftModel.from_pretrained(stock.transformer, folder)


def _same_latents(_: Any, noise: Tensor) -> Tensor:
    return noise


def _packed(stock: Any, noise: Tensor) -> Tensor:
    return stock._pack_latents(noise, *noise.shape)


def _patched(_: Any, noise: Tensor) -> Tensor:
    return pixel_unshuffle(noise, 2)


def _guided(scale: float) -> dict[str, Any]:
    return {"guidance_scale": scale}


def _one_less(scale: float) -> dict[str, Any]:
    return {"guidance_scale": scale - 1}


def _true_cfg(scale: float) -> dict[str, Any]:
    return {"negative_prompt": [""] * len(PROMPTS), "true_cfg_scale": scale} if scale > 1 else {"true_cfg_scale": 1.0}


def _sdxl_unet() -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    return UNet2DConditionModel(**settings)


@dataclass(frozen=True)
class Tiny:
    """One family in the contract."""

    make: Callable[..., Any]
    """seed -> the pipeline."""
    side: int
    """Pixels of its pictures in tests."""
    latent_shape: tuple[int, int, int]
    """At `side`."""
    other_side: int
    """Another one that it draws."""
    refused_sides: tuple[int, ...]
    sides: str
    """What the refusal of a side says."""
    real: Callable[[], Any]
    """The published network, or one with fewer of its layers, on the device meta."""
    attention: str
    """A pattern of its attention layers' names."""
    projections: int
    """How many Linear layers they have."""
    refused_lengths: tuple[int, ...] = ()
    lengths: str = ""
    """What the refusal of a text length says."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of load_model."""
    absent: tuple[str, ...] = ()
    """Parts that the saved pipeline does not have and diffusers must be told so."""
    call: dict[str, Any] = field(default_factory=dict)
    """Of the stock call."""
    guidance: Callable[[float], dict[str, Any]] = _guided
    """How the stock call is told our guidance."""
    latents: Callable[[Any, Tensor], Tensor] = _same_latents
    """How it takes the noise."""
    images: Callable[..., Tensor] = our_images
    """Our walk over the scheduler's grid."""
    round_trip: Callable[[Any, Tensor], Tensor] = round_trip
    load_lora: Callable[[Any, Path], None] = _load_lora
    euler: bool = False
    """Whether the tests walk the stock pipeline by Euler's method instead of its own scheduler's."""
    linear_guidance: bool = True
    line_tolerance: float = 1e-4
    network_tolerance: float = 1e-5
    """Between the pictures of a network that trained whole, ours and the stock pipeline's."""
    unread: tuple[str, ...] = ()
    """Adapters whose output nothing reads."""
    bf16: dict[str, Any] = field(default_factory=dict)
    """Of load_model, for the comparison of bf16 with fp32."""
    bf16_t: tuple[float, ...] = (0.9, 0.5, 0.2)
    moved: float = 0.1
    """How far tests move trained weights."""

    def prepared(self, pipeline: Any) -> Any:
        """The stock pipeline, or ours, as the tests walk it."""
        if self.euler:
            pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return pipeline

    def stock_images(self, stock: Any, noise: Tensor, guidance_scale: float, num_steps: int = 4) -> Tensor:
        """A stock call for PROMPTS from this noise, (3, C, h, w)."""
        side = self.side * noise.shape[-1] // self.latent_shape[-1]
        return stock(
            prompt=list(PROMPTS),
            latents=self.latents(stock, noise),
            num_inference_steps=num_steps,
            height=side,
            width=side,
            output_type="pt",
            **self.guidance(guidance_scale),
            **self.call,
        ).images


_ROUNDED = (1.0, 0.5, 0.25)
"""In bf16 some networks round t and what they are told beside it: these to themselves."""
_VP: dict[str, Any] = {
    "side": 64,
    "latent_shape": (4, 8, 8),
    "other_side": 96,
    "refused_sides": (0, 68),
    "images": vp_images,
    "line_tolerance": 1e-3,
    # in the middle, where little of the image is divided by: at high t the noise prediction's rounding is amplified
    "bf16_t": (0.6, 0.5, 0.2),
    "moved": 0.05,
}
_CLIP: dict[str, Any] = {
    "sides": "multiples of 8 pixels",
    "refused_lengths": (15, 64),
    "lengths": "CLIP always reads 16 tokens",
    "attention": r"\.attn\d\.",
}

TINY: dict[str, Tiny] = {
    "StableDiffusion3Pipeline": Tiny(
        make=tiny_sd3,
        side=64,
        latent_shape=(4, 8, 8),
        other_side=96,
        refused_sides=(0, 72, 144),
        sides="multiples of 16 pixels up to 128",
        refused_lengths=(-1, 513),
        lengths="reads 0 to 512 text tokens",
        absent=("text_encoder_3", "tokenizer_3"),
        call={"max_sequence_length": 0},
        real=lambda: SD3Transformer2DModel(num_layers=3, dual_attention_layers=(0, 1)),
        attention=r"\.attn\.",
        unread=("transformer_blocks.1.attn.add_q_proj",),  # of the last block
        projections=3 * 8 - 1,  # the last block has no output for the text
    ),
    "FluxPipeline": Tiny(
        make=tiny_flux,
        side=32,
        latent_shape=(4, 8, 8),
        other_side=48,
        refused_sides=(0, 12, 36),
        sides="multiples of 8 pixels",
        refused_lengths=(0, 513),
        lengths="reads 1 to 512 text tokens",
        settings={"resolution": 32, "max_sequence_length": 24},  # T5 padded to 24 tokens instead of 512
        call={"max_sequence_length": 24},
        guidance=_true_cfg,
        latents=_packed,
        bf16={"distilled_guidance": 4.0},
        bf16_t=_ROUNDED,
        real=lambda: FluxTransformer2DModel(guidance_embeds=True),
        attention=r"\.attn\.",
        projections=19 * 8 + 38 * 3,
    ),
    "Flux2KleinPipeline": Tiny(
        make=tiny_flux2,
        side=32,
        latent_shape=(4, 8, 8),
        other_side=48,
        refused_sides=(0, 12, 36),
        sides="multiples of 8 pixels",
        refused_lengths=(0, 513),
        lengths="reads 1 to 512 text tokens",
        settings={"resolution": 32, "max_sequence_length": 64},
        call={"max_sequence_length": 64},
        latents=_patched,
        bf16_t=_ROUNDED,
        real=lambda: Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        ),
        attention=r"\.attn\.",
        projections=5 * 8 + 20 * 2,
    ),
    "QwenImagePipeline": Tiny(
        make=tiny_qwen_image,
        side=32,
        latent_shape=(4, 8, 8),
        other_side=48,
        refused_sides=(0, 12, 36),
        sides="multiples of 8 pixels",
        refused_lengths=(0, 1025),
        lengths="reads 1 to 1024 text tokens",
        settings={"resolution": 32},
        guidance=_true_cfg,
        latents=_packed,
        round_trip=_video_round_trip,
        linear_guidance=False,
        unread=("transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.to_add_out"),  # of the last block
        bf16_t=_ROUNDED,
        real=QwenImageTransformer2DModel,
        attention=r"\.attn\.",
        projections=60 * 8,
    ),
    "ZImagePipeline": Tiny(
        make=tiny_z_image,
        side=64,
        latent_shape=(4, 8, 8),
        other_side=96,
        refused_sides=(0, 72, 272),
        sides="multiples of 16 pixels up to 256",
        refused_lengths=(0, 513),
        lengths="reads 1 to 512 text tokens",
        settings={"resolution": 64},
        guidance=_one_less,
        network_tolerance=1e-4,
        real=lambda: ZImageTransformer2DModel(n_layers=2, axes_lens=[1536, 512, 512]),
        attention=r"\.attention\.",
        projections=4 * 6,
    ),
    "SanaPipeline": Tiny(
        make=tiny_sana,
        side=128,
        latent_shape=(4, 4, 4),
        other_side=96,
        refused_sides=(0, 80),
        sides="multiples of 32 pixels",
        refused_lengths=(0, 10**6),
        lengths="reads 1 to 8192 text tokens",
        call={"use_resolution_binning": False},
        round_trip=_deep_round_trip,
        euler=True,  # its own scheduler rounds t to an integer timestep
        real=lambda: SanaTransformer2DModel(num_layers=2),
        attention=r"\.attn\d\.",
        projections=4 * 2 * 2,
    ),
    "StableDiffusionPipeline": Tiny(
        make=lambda seed=0: tiny_sd(seed=seed),
        real=lambda: UNet2DConditionModel(cross_attention_dim=768),
        projections=128,
        **_VP,
        **_CLIP,
    ),
    "StableDiffusionXLPipeline": Tiny(
        make=lambda seed=0: tiny_sdxl(seed=seed), real=_sdxl_unet, projections=560, **_VP, **_CLIP
    ),
    "PixArtSigmaPipeline": Tiny(
        make=lambda seed=0: tiny_pixart(seed=seed),
        sides="multiples of 16 pixels",
        refused_lengths=(0, 513),
        lengths="reads 1 to 512 text tokens",
        call={"clean_caption": False, "use_resolution_binning": False},
        load_lora=_load_peft,
        real=lambda: PixArtTransformer2DModel(caption_channels=4096, use_additional_conditions=False),
        attention=r"\.attn\d\.",
        projections=224,
        **_VP,
    ),
}
"""By the pipeline's class, as `dgpo.models.FAMILIES`."""
