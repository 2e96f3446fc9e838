"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206).

A rectified-flow transformer: its output is already `noise - x0`, at the timestep 1000 * t. Its text is two CLIP
encoders and, where the pipeline has one, T5.
Without T5 diffusers pads the text with `max_sequence_length` zero tokens (256 unless told), which only cost time: here
the default is none, so the stock call that draws the same picture is `pipeline(..., max_sequence_length=0)`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dgpo.models.grids import dynamic_mu, scheduler_grid, scheduler_shift
from dgpo.models.pipeline import Family
from dgpo.models.rows import Rows
from dgpo.models.sizes import fitting_length, fitting_side

_MAX_SHIFT = 1.16  # of the stock call, where a scheduler whose shift follows the size names none


class SD3(Family):
    """See `dgpo.models.pipeline.Family`."""

    lora_targets: ClassVar[tuple[str, ...]] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    """As the DGPO authors have them: not the second attention, `attn2`, of SD3.5-M's dual layers."""

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        """max_sequence_length: T5 tokens; None: 256 with T5, none without."""
        self.pipeline = pipeline
        t5 = pipeline.text_encoder_3 is not None
        self.max_sequence_length = fitting_length(max_sequence_length, 256 if t5 else 0, 512, least=1 if t5 else 0)
        config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
        multiple = scale * config.patch_size
        side = fitting_side(resolution, config.sample_size * scale, multiple, config.pos_embed_max_size * multiple)
        self.latent_shape = config.in_channels, side // scale, side // scale

    @property
    def shift(self) -> float:
        return scheduler_shift(self.pipeline.scheduler.config, self.latent_shape, _MAX_SHIFT)

    def encode(self, prompts: list[str]) -> Rows:
        prompt_embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.text_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return Rows({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def text_limits(self) -> dict[str, int]:
        """T5 reads on where both CLIPs, which have one length, stop."""
        t5 = {} if self.pipeline.text_encoder_3 is None else {"tokenizer_3": self.max_sequence_length}
        return {"tokenizer": self.pipeline.tokenizer.model_max_length, **t5}

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": guidance_scale, "max_sequence_length": self.max_sequence_length}

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        return self.pipeline.transformer(
            hidden_states=x_t,
            timestep=t * self.timesteps,
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            pooled_projections=cond.tensors["pooled"],
            return_dict=False,
        )[0]

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        config = self.pipeline.scheduler.config
        dynamic = config.get("use_dynamic_shifting")
        mu = {"mu": dynamic_mu(config, self.latent_shape, _MAX_SHIFT)} if dynamic else {}
        return scheduler_grid(self.pipeline, num_steps, **mu)
