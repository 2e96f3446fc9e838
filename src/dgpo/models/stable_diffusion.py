"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv 2112.10752).

A variance-preserving U-Net that predicts the noise (1.x, 2 at 512 pixels) or v (2 at 768 pixels), turned into a
velocity field by `vp.py`: the noise schedule and what is predicted are read from the pipeline's scheduler, whichever
it is. The text is CLIP's last hidden state, always of the tokenizer's length, padded and without a mask. The stock
call that draws the same picture has DDIMScheduler, as Euler's method is DDIM.
The safety checker is let go: it would only take memory, as rewards need every picture as it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dgpo.errors import UserError
from dgpo.models.rows import Rows
from dgpo.models.sizes import fitting_side
from dgpo.models.vp import VPFamily, VPSchedule


class StableDiffusion(VPFamily):
    """See `dgpo.models.vp.VPFamily`."""

    network: ClassVar[str] = "unet"

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        self.pipeline = pipeline
        self.schedule = VPSchedule(pipeline.scheduler)
        self.latent_shape = unet_latent_shape(pipeline, resolution)
        require_clip_length(pipeline, max_sequence_length)
        pipeline.register_modules(safety_checker=None, image_encoder=None)

    def encode(self, prompts: list[str]) -> Rows:
        prompt_embeds, _ = self.pipeline.encode_prompt(
            prompts, self.text_device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Rows({"prompt_embeds": prompt_embeds})

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        x_vp, level = self.schedule.read(x_t, t)
        output = self.pipeline.unet(
            x_vp, level.timestep, encoder_hidden_states=cond.tensors["prompt_embeds"], return_dict=False
        )[0]
        return self.schedule.velocity(output, x_vp, level)


def unet_latent_shape(pipeline: Any, resolution: int | None) -> tuple[int, int, int]:
    """(C, h, w) of a U-Net at a resolution. UserError where it does not fit, or where the U-Net is a distilled one."""
    config, scale = pipeline.unet.config, pipeline.vae_scale_factor
    if config.time_cond_proj_dim is not None:
        raise UserError(
            "this U-Net is told its guidance, as latent consistency models are: it jumps to the image and has no "
            "velocity to follow. Train the model that it was distilled from."
        )
    own = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
    side = fitting_side(resolution, own * scale, scale)
    return config.in_channels, side // scale, side // scale


def require_clip_length(pipeline: Any, max_sequence_length: int | None) -> None:
    """CLIP's text has one length, whatever is asked for."""
    own = pipeline.tokenizer.model_max_length
    if max_sequence_length not in (None, own):
        raise UserError(f"max_sequence_length={max_sequence_length}: CLIP always reads {own} tokens; leave it unset")
