"""Sana and Sana 1.5 (Xie et al. 2024, arXiv 2410.10629).

A transformer with linear attention over the latents of a deep autoencoder, 32 times smaller than the image and with a
scale but no shift. Its output is `noise - x0` at the timestep `1000 t timestep_scale`. Text is Gemma's, with a mask.
As in diffusers a prompt is preceded by the paper's "complex human instruction", of which only the first and the last
`max_sequence_length - 1` positions are kept, and the negative prompt of guidance is not, nor the empty one, "".

Published pipelines walk DPM-Solver++ on a flow grid and round its timesteps down to integers; here t is not rounded.
A stock call draws at the nearest resolution of its list and resizes; here the network draws the resolution asked for,
as the stock call does with `use_resolution_binning=False`. Sana-Sprint, which reads a guidance scale, is not covered.
Linear attention sums over all tokens; autocast does that in half precision, which is accurate enough in bf16 and can
overflow in fp16.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from dgpo.errors import UserError
from dgpo.models.grids import scheduler_shift
from dgpo.models.pipeline import Family
from dgpo.models.rows import Rows
from dgpo.models.sizes import fitting_length, fitting_side


class Sana(Family):
    """See `dgpo.models.pipeline.Family`."""

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        """max_sequence_length: text tokens that the network reads; None: 300."""
        self.pipeline = pipeline
        largest = pipeline.text_encoder.config.max_position_embeddings
        self.max_sequence_length = fitting_length(max_sequence_length, own=300, largest=largest)
        # diffusers keeps the instruction's words as a default argument and nowhere else
        self.instruction = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
        if pipeline.scheduler.config.get("use_dynamic_shifting"):
            raise UserError(
                "the pipeline's scheduler has use_dynamic_shifting=true, and Sana's pipeline tells it no size to follow"
            )
        side = fitting_side(resolution, config.sample_size * scale, scale * config.patch_size)
        self.latent_shape = config.in_channels, side // scale, side // scale

    @property
    def shift(self) -> float:
        return scheduler_shift(self.pipeline.scheduler.config, self.latent_shape)

    def encode(self, prompts: list[str]) -> Rows:
        if "" in prompts and len(prompts) > 1:
            first, *others = (self.encode([prompt]) for prompt in prompts)
            return first.cat(*others)
        return self._encode(prompts, self.instruction if prompts[0] else None)

    def encode_negative(self, prompts: list[str]) -> Rows:
        return self._encode(prompts, None)

    def _encode(self, prompts: list[str], instruction: list[str] | None) -> Rows:
        prompt_embeds, mask, _, _ = self.pipeline.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            device=self.text_device,
            max_sequence_length=self.max_sequence_length,
            complex_human_instruction=instruction,
        )
        longest = int(mask.sum(1).max())  # beyond it all rows are padding, which the mask hides from the network
        return Rows({"prompt_embeds": prompt_embeds[:, :longest], "mask": mask[:, :longest]})

    def text_limits(self) -> dict[str, int]:
        """One less, as `max_length_all` of the stock pipeline counts the instruction's tokens."""
        return {"tokenizer": self.max_sequence_length - 1}

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        own = {"use_resolution_binning": False, "max_sequence_length": self.max_sequence_length}
        return {"guidance_scale": guidance_scale, **own}

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        transformer = self.pipeline.transformer
        output = transformer(
            x_t,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_attention_mask=cond.tensors["mask"],
            timestep=t * self.timesteps * transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return output[:, : x_t.shape[1]]  # a learned variance may follow the velocity's channels

    def to_vae(self, x0: Tensor) -> Tensor:
        return x0 / self.pipeline.vae.config.scaling_factor

    def from_vae(self, latents: Tensor) -> Tensor:
        return latents * self.pipeline.vae.config.scaling_factor
