"""FLUX.1 [dev] and [schnell] (Black Forest Labs 2024; the architecture is described in arXiv 2506.15742).

A rectified-flow transformer: its output is already `noise - x0`, and it reads t itself. It works on 2x2 patches of the
latents; here x_t and v keep their (n, C, h, w), and are packed around the network alone.
- [dev] is guidance-distilled: it is told a guidance as one more input, `distilled_guidance`, 3.5 unless set. [schnell]
  is not told any. `guidance_scale` other than 1 is true guidance on top of that, with a second row per image: what
  diffusers calls `true_cfg_scale`, with the empty negative prompt.
- The text is CLIP's pooled vector and T5's tokens, padded to `max_sequence_length` without a mask, so that the padding
  is read like words and all rows have one length. It is 512 unless set, as in the stock call; [schnell] was made for
  256.
- The shift of [dev] grows with the number of image tokens, that of [schnell] is 1.
- Computing in bf16 the network rounds t and the guidance to its 8 bits before it embeds them, as in a stock call.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dgpo.models.grids import scheduler_shift, shifted_grid
from dgpo.models.patches import pack, unpack
from dgpo.models.pipeline import Family
from dgpo.models.rows import Rows
from dgpo.models.sizes import fitting_length, fitting_side


class Flux(Family):
    """See `dgpo.models.pipeline.Family`."""

    lora_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),  # single-stream blocks have the first three; their output is no layer
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        """max_sequence_length: T5 tokens."""
        self.pipeline = pipeline
        self.max_sequence_length = fitting_length(max_sequence_length, own=512, largest=512)
        config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
        self.distilled_guidance: float | None = 3.5 if config.guidance_embeds else None
        side = fitting_side(resolution, pipeline.default_sample_size * scale, 2 * scale)
        self.latent_shape = config.in_channels // 4, side // scale, side // scale

    @property
    def shift(self) -> float:
        return scheduler_shift(self.pipeline.scheduler.config, self.latent_shape)

    def encode(self, prompts: list[str]) -> Rows:
        prompt_embeds, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.text_device, max_sequence_length=self.max_sequence_length
        )
        return Rows({"prompt_embeds": prompt_embeds, "pooled": pooled})

    def text_limits(self) -> dict[str, int]:
        """T5 reads on where CLIP stops."""
        return {"tokenizer": self.pipeline.tokenizer.model_max_length, "tokenizer_2": self.max_sequence_length}

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        height, width = x_t.shape[2:]
        text = cond.tensors["prompt_embeds"]
        places = [torch.arange(n, device=t.device, dtype=t.dtype) for n in (1, height // 2, width // 2)]
        positions = torch.cartesian_prod(*places)  # (tokens, 3)
        tokens = self.pipeline.transformer(
            hidden_states=pack(x_t),
            timestep=t * (self.timesteps / 1000),
            guidance=None if self.distilled_guidance is None else torch.full_like(t, self.distilled_guidance),
            encoder_hidden_states=text,
            pooled_projections=cond.tensors["pooled"],
            txt_ids=positions.new_zeros(text.shape[1], 3),
            img_ids=positions,
            return_dict=False,
        )[0]
        return unpack(tokens, height)

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        guided = {"negative_prompt": "", "true_cfg_scale": guidance_scale} if guidance_scale > 1 else {}
        told = {} if self.distilled_guidance is None else {"guidance_scale": self.distilled_guidance}
        return {**told, **guided, "max_sequence_length": self.max_sequence_length}

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        return shifted_grid(self.pipeline, num_steps, self.latent_shape)
