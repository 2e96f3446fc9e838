"""Qwen-Image (Wu et al. 2025, arXiv 2508.02324).

A rectified-flow transformer: its output is already `noise - x0`, and it reads t itself. It works on 2x2 patches of the
latents, as FLUX.1 does, and shares that model's packing and its shift by the number of image tokens; where the
scheduler has a `shift_terminal`, grids are stretched so that the last level before 0 is that value.
- The text is a prompt in a template, read by Qwen2.5-VL, without the template's opening. Rows have different lengths.
  Padding is masked as a key in every attention and keeps its place after the words, so that a padded row, as in
  guidance beside the empty prompt, gets the velocity that it gets alone.
- Guidance gives each patch of the guided velocity the norm of the conditional one. `guidance_scale` is diffusers'
  `true_cfg_scale`, with the empty negative prompt.
- The autoencoder is one of videos, here of one frame, with a mean and a deviation per latent channel.
- Computing in bf16 the network rounds t to its 8 bits before it embeds it, as in a stock call.
- Its `guidance_embeds` is declared in diffusers but cannot run there, so that such a network is refused.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dgpo.errors import UserError
from dgpo.models.grids import scheduler_shift, shifted_grid
from dgpo.models.guidance import linear_guidance
from dgpo.models.patches import pack, unpack
from dgpo.models.pipeline import Family
from dgpo.models.rows import Rows
from dgpo.models.sizes import fitting_length, fitting_side


class QwenImage(Family):
    """See `dgpo.models.pipeline.Family`."""

    lora_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        """max_sequence_length: tokens of the prompt and of the template's end; longer texts are cut."""
        self.pipeline = pipeline
        self.max_sequence_length = fitting_length(max_sequence_length, own=512, largest=1024)
        config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
        if config.guidance_embeds:
            raise UserError(
                "this Qwen-Image has guidance_embeds=true: it wants to be told a guidance, which diffusers' "
                "QwenImageTransformer2DModel cannot read. Use a checkpoint with guidance_embeds=false."
            )
        side = fitting_side(resolution, pipeline.default_sample_size * scale, 2 * scale)
        self.latent_shape = config.in_channels // 4, side // scale, side // scale

    @property
    def shift(self) -> float:
        return scheduler_shift(self.pipeline.scheduler.config, self.latent_shape)

    def encode(self, prompts: list[str]) -> Rows:
        prompt_embeds, mask = self.pipeline.encode_prompt(
            prompts, device=self.text_device, max_sequence_length=self.max_sequence_length
        )
        if mask is None:  # the pipeline's word for rows of one length
            mask = prompt_embeds.new_ones(prompt_embeds.shape[:2])
        return Rows({"prompt_embeds": prompt_embeds, "mask": mask.bool()})

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        height, width = x_t.shape[2:]
        text, mask = _without_common_padding(cond)
        tokens = self.pipeline.transformer(
            hidden_states=pack(x_t),
            timestep=t * (self.timesteps / 1000),
            encoder_hidden_states=text,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
            return_dict=False,
        )[0]
        return unpack(tokens, height)

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        guided = (
            {"negative_prompt": "", "true_cfg_scale": guidance_scale} if guidance_scale > 1 else {"true_cfg_scale": 1.0}
        )
        return {**guided, "max_sequence_length": self.max_sequence_length}

    def guide(self, v_uncond: Tensor, v_cond: Tensor, scale: float) -> Tensor:
        tokens, wanted = pack(linear_guidance(v_uncond, v_cond, scale)), pack(v_cond)
        rescale = wanted.norm(dim=-1, keepdim=True) / tokens.norm(dim=-1, keepdim=True)  # (n, tokens, 1)
        return unpack(tokens * rescale, v_cond.shape[2])

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        return shifted_grid(self.pipeline, num_steps, self.latent_shape)

    def decode(self, x0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, std = _channels(vae, x0)
        frames = (x0 * std + mean).to(vae.dtype)[:, :, None]  # (n, C, 1, h, w)
        return vae.decode(frames, return_dict=False)[0][:, :, 0]

    def encode_images(self, images: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(images.to(vae.dtype)[:, :, None], return_dict=False)[0].mode()[:, :, 0].float()
        mean, std = _channels(vae, latents)
        return (latents - mean) / std


def _without_common_padding(cond: Rows) -> tuple[Tensor, Tensor | None]:
    """Text (n, L, D) as long as its longest row, and its mask (n, L); None, which is faster, where all are as long."""
    text, mask = cond.tensors["prompt_embeds"], cond.tensors["mask"]
    lengths = mask.sum(1).tolist()
    longest = max(lengths)
    return text[:, :longest], None if min(lengths) == longest else mask[:, :longest]


def _channels(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the autoencoder's latents, (C, 1, 1) each."""
    mean, std = (torch.tensor(values).to(latents) for values in (vae.config.latents_mean, vae.config.latents_std))
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)
