"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952).

As Stable Diffusion (`stable_diffusion.py`), with two text encoders, whose last but one hidden states lie side by side,
and two more conditions: the second encoder's pooled text, and six numbers of the size (of the original and its crop,
which are the picture's own here, as in a stock call).
Where the pipeline says `force_zeros_for_empty_prompt`, as the base model does, the empty prompt is zeros, as the stock
call has it for guidance; a stock call that draws the prompt "" would encode it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dgpo.models.rows import Rows
from dgpo.models.stable_diffusion import require_clip_length, unet_latent_shape
from dgpo.models.vp import VPFamily, VPSchedule


class SDXL(VPFamily):
    """See `dgpo.models.vp.VPFamily`."""

    network: ClassVar[str] = "unet"

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        self.pipeline = pipeline
        self.schedule = VPSchedule(pipeline.scheduler)
        self.latent_shape = unet_latent_shape(pipeline, resolution)
        require_clip_length(pipeline, max_sequence_length)
        pipeline.register_modules(image_encoder=None)

    def encode(self, prompts: list[str]) -> Rows:
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.text_device, do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = torch.tensor([prompt == "" for prompt in prompts], device=pooled.device)
            prompt_embeds = prompt_embeds.masked_fill(empty[:, None, None], 0)
            pooled = pooled.masked_fill(empty[:, None], 0)
        return Rows({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        x_vp, level = self.schedule.read(x_t, t)
        height, width = (side * self.pipeline.vae_scale_factor for side in x_t.shape[2:])
        size = torch.tensor([height, width, 0, 0, height, width], device=x_t.device)
        output = self.pipeline.unet(
            x_vp,
            level.timestep,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            added_cond_kwargs={"text_embeds": cond.tensors["pooled"], "time_ids": size.expand(len(x_t), -1)},
            return_dict=False,
        )[0]
        return self.schedule.velocity(output, x_vp, level)

    def to_vae(self, x0: Tensor) -> Tensor:
        mean, std = self._channels(x0)
        return x0 * std / self.pipeline.vae.config.scaling_factor + mean

    def from_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._channels(latents)
        return (latents - mean) * self.pipeline.vae.config.scaling_factor / std

    def _channels(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's latents, (C, 1, 1) each; 0 and 1 unless it has both."""
        mean, std = (self.pipeline.vae.config.get(name) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return latents.new_zeros(1, 1, 1), latents.new_ones(1, 1, 1)
        return latents.new_tensor(mean).view(-1, 1, 1), latents.new_tensor(std).view(-1, 1, 1)
