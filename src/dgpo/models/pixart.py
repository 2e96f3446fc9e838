"""PixArt-Sigma (Chen et al. 2024, arXiv 2403.04692).

A variance-preserving transformer that predicts the noise, turned into a velocity field by `vp.py`. Its text is T5's
tokens with a mask; the padding, which the mask hides, is cut off, so that rows have the length of their prompt.
- Half of its output channels are learned variances, which no deterministic sampler uses: they are dropped.
- A network whose configuration asks for PixArt-alpha's micro-conditions is told its resolution and aspect ratio.
- Prompts are not rewritten: diffusers' `clean_caption`, which strips punctuation and is on by default where two
  optional packages are installed, is off. The stock call that draws the same picture has DDIMScheduler,
  `clean_caption=False` and, at sizes other than the trained ones, `use_resolution_binning=False`.
- diffusers loads no LoRA into this pipeline or its transformer: an exported one is PEFT's own folder, for
  `pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, folder)`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dgpo.models.rows import Rows
from dgpo.models.sizes import fitting_length, fitting_side
from dgpo.models.vp import VPFamily, VPSchedule


class PixArtSigma(VPFamily):
    """See `dgpo.models.vp.VPFamily`."""

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        """max_sequence_length: T5 tokens at most."""
        self.pipeline = pipeline
        self.schedule = VPSchedule(pipeline.scheduler)
        self.max_sequence_length = fitting_length(max_sequence_length, own=300, largest=512)
        config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
        side = fitting_side(resolution, config.sample_size * scale, scale * config.patch_size)
        self.latent_shape = config.in_channels, side // scale, side // scale

    def encode(self, prompts: list[str]) -> Rows:
        prompt_embeds, mask, _, _ = self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.text_device,
            clean_caption=False,
            max_sequence_length=self.max_sequence_length,
        )
        longest = int(mask.sum(1).max())
        return Rows({"prompt_embeds": prompt_embeds[:, :longest], "mask": mask[:, :longest]})

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        own = {"clean_caption": False, "use_resolution_binning": False, "max_sequence_length": self.max_sequence_length}
        return {"guidance_scale": guidance_scale, **own}

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        x_vp, level = self.schedule.read(x_t, t)
        output = self.pipeline.transformer(
            x_vp,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_attention_mask=cond.tensors["mask"],
            timestep=level.timestep,
            added_cond_kwargs=self._micro_conditions(x_t),
            return_dict=False,
        )[0]
        return self.schedule.velocity(output[:, : x_t.shape[1]], x_vp, level)

    def _micro_conditions(self, x_t: Tensor) -> dict[str, Tensor | None]:
        if not self.pipeline.transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        n, _, height, width = x_t.shape
        resolution = x_t.new_tensor([height, width]) * self.pipeline.vae_scale_factor
        return {"resolution": resolution.expand(n, 2), "aspect_ratio": x_t.new_full((n, 1), height / width)}
