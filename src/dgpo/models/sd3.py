"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206) as a VelocityModel, over a stock diffusers pipeline.

A rectified-flow transformer: its output is already `noise - x0`, at the timestep 1000 * t. Its text is two CLIP
encoders and, where the pipeline has one, T5. The transformer trains; encoders and VAE stay frozen.
Without T5 diffusers pads the text with `max_sequence_length` zero tokens (256 unless told), which only cost time: here
the default is none, so the stock call that draws the same picture is `pipeline(..., max_sequence_length=0)`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from dgpo.core.solvers import flow_sigmas
from dgpo.errors import UserError
from dgpo.models.weights import DEFAULT_LORA, EXTRA_SETS, LoraConfig, full_weights, lora_weights


@dataclass(frozen=True)
class SD3Cond:
    """n rows of encoded prompts."""

    prompt_embeds: Tensor  # (n, L, D) token embeddings, CLIP's then T5's
    pooled: Tensor  # (n, P)

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: slice | Tensor) -> SD3Cond:
        return SD3Cond(self.prompt_embeds[index], self.pooled[index])

    def repeat(self, n: int) -> SD3Cond:
        """Each row n times in a row: a, a, b, b."""
        return SD3Cond(self.prompt_embeds.repeat_interleave(n, 0), self.pooled.repeat_interleave(n, 0))

    def cat(self, *others: SD3Cond) -> SD3Cond:
        """These rows, then those of the others."""
        rows = (self, *others)
        return SD3Cond(torch.cat([c.prompt_embeds for c in rows]), torch.cat([c.pooled for c in rows]))

    def to(self, device: torch.device | str) -> SD3Cond:
        """The same rows on another device."""
        return SD3Cond(self.prompt_embeds.to(device), self.pooled.to(device))


class SD3Model:
    """Implements `dgpo.models.base.VelocityModel`; the shapes are documented there."""

    network: ClassVar[str] = "transformer"
    lora_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        *,
        finetune: Literal["lora", "full"] = "lora",
        lora: LoraConfig = DEFAULT_LORA,
        sets: Sequence[str] = EXTRA_SETS,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        resolution: int | None = None,
        max_sequence_length: int | None = None,
        shift: float | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Take over a loaded pipeline: freeze it, put it on a device, make the weight sets.

        dtype: what the transformer computes in, by autocast unless fp32; a pipeline loaded in bf16 needs bf16 here
        resolution: side of the square images in pixels; None: the transformer's own
        max_sequence_length: T5 tokens; None: 256 with T5, none without
        shift: of the flow grid; None: the pipeline scheduler's
        """
        self.pipeline: Any = pipeline
        self.dtype = dtype
        self.max_sequence_length = (
            (256 if pipeline.text_encoder_3 else 0) if max_sequence_length is None else max_sequence_length
        )
        self.shift = float(pipeline.scheduler.config["shift"] if shift is None else shift)
        self.latent_shape = _latent_shape(pipeline, resolution)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.to(device).requires_grad_(False).eval()
        self.weights = (
            full_weights(self.transformer, sets)
            if finetune == "full"
            else lora_weights(self.transformer, lora, self.lora_targets, sets, seed, _save_lora)
        )
        if gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()

    @property
    def transformer(self) -> Any:
        return self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @cached_property
    def latent_space(self) -> dict[str, Any]:
        """The autoencoder is told by a hash of its small tensors, which is quick and enough."""
        vae: Any = self.pipeline.vae
        digest = hashlib.sha256()
        for name, tensor in sorted(vae.state_dict().items()):
            if tensor.numel() <= 4096:
                digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
        return {
            "latent_shape": list(self.latent_shape),
            "scaling_factor": vae.config.scaling_factor,
            "shift_factor": vae.config.shift_factor or 0.0,
            "autoencoder": digest.hexdigest(),
        }

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> SD3Cond:
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return SD3Cond(prompt_embeds, pooled)

    @cached_property
    def _empty(self) -> SD3Cond:
        return self.encode([""])

    def init_noise(self, generators: list[torch.Generator]) -> Tensor:
        rows = [torch.randn(self.latent_shape, generator=generator) for generator in generators]
        return torch.stack(rows).to(self.device)

    def velocity(
        self, x_t: Tensor, t: Tensor, cond: SD3Cond, guidance_scale: float = 1.0, weights: str = "policy"
    ) -> Tensor:
        x_t, t, cond = x_t.to(self.device), t.to(self.device), cond.to(self.device)
        with self.weights.use(weights):
            if guidance_scale == 1.0:
                return self._forward(x_t, t, cond)
            both = self._empty.repeat(len(cond)).cat(cond)
            v_uncond, v_cond = self._forward(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
            return v_uncond + guidance_scale * (v_cond - v_uncond)

    def _forward(self, x_t: Tensor, t: Tensor, cond: SD3Cond) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            (v,) = self.transformer(
                hidden_states=x_t,
                timestep=t.float() * 1000,
                encoder_hidden_states=cond.prompt_embeds,
                pooled_projections=cond.pooled,
                return_dict=False,
            )
        return v.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        vae: Any = self.pipeline.vae
        latents = x0 / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        images = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        vae: Any = self.pipeline.vae
        height, width = (side * self.pipeline.vae_scale_factor for side in self.latent_shape[1:])
        if images.shape[1:] != (3, height, width):
            raise UserError(
                f"an image has {images.shape[-1]} x {images.shape[-2]} pixels, and the model draws {width} x {height}; "
                "resize the images, or set resolution"
            )
        encoded = vae.encode((images * 2 - 1).to(vae.device, vae.dtype), return_dict=False)[0]
        latents = encoded if isinstance(encoded, Tensor) else encoded.mode()  # AutoencoderTiny knows no distribution
        return (latents.float() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def sigmas(self, num_steps: int) -> Tensor:
        return flow_sigmas(num_steps, self.shift).to(self.device)

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        """(num_steps + 1,) the grid of the pipeline's own scheduler, which a stock call walks; for comparisons."""
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(num_steps, device=self.device)
        return scheduler.sigmas


def _latent_shape(pipeline: Any, resolution: int | None) -> tuple[int, int, int]:
    """(C, h, w) of square images of this many pixels."""
    config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
    side: int = config.sample_size * scale if resolution is None else resolution
    multiple = scale * config.patch_size
    largest = config.pos_embed_max_size * multiple
    if side % multiple or not 0 < side <= largest:
        raise UserError(
            f"resolution={side} does not fit this model: it draws multiples of {multiple} pixels up to {largest}"
        )
    return config.in_channels, side // scale, side // scale


def _save_lora(directory: Path, tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
    StableDiffusion3Pipeline.save_lora_weights(
        directory, transformer_lora_layers=tensors, transformer_lora_adapter_metadata=metadata
    )
