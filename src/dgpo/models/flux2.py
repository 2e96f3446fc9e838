"""FLUX.2 [klein], base and distilled (Black Forest Labs 2026), from text alone.

A rectified-flow transformer: its output is already `noise - x0`, and it reads t itself. It works on 2x2 patches of the
latents, and the latents are normalised patch by patch, each of its numbers by a mean and a deviation of its own. Here
x_t and v keep their (n, C, h, w), and are packed around the network alone.
- The text is three hidden layers of Qwen3 side by side, padded to `max_sequence_length` (512 unless set). The network
  has no mask, so that the padding is read like words and all rows have one length.
- The shift of the grid grows with the number of image tokens and falls a little with the number of steps.
- The distilled models draw without guidance: a stock call ignores a scale, and here one other than 1 is refused.
- Computing in bf16 the network rounds t to its 8 bits before it embeds it, as in a stock call.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dgpo.models.chat import require_chat_template, room_for_prompt
from dgpo.models.grids import even_grid, shift_of
from dgpo.models.patches import pack, unpack
from dgpo.models.pipeline import Family
from dgpo.models.rows import Rows
from dgpo.models.sizes import fitting_length, fitting_side

_STEPS = 50  # of the stock call


class Flux2Klein(Family):
    """See `dgpo.models.pipeline.Family`."""

    lora_targets: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "to_qkv_mlp_proj",  # of single-stream blocks, of which no published network has more than 48
        *(f"single_transformer_blocks.{number}.attn.to_out" for number in range(48)),  # elsewhere a list has the name
    )

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        """max_sequence_length: text tokens, the chat template's among them; None: 512."""
        self.pipeline = pipeline
        require_chat_template(pipeline.tokenizer)
        self.max_sequence_length = fitting_length(max_sequence_length, own=512, largest=512)
        self.guides = not pipeline.config.is_distilled
        scale = pipeline.vae_scale_factor
        side = fitting_side(resolution, pipeline.default_sample_size * scale, 2 * scale)
        self.latent_shape = pipeline.transformer.config.in_channels // 4, side // scale, side // scale

    @property
    def shift(self) -> float:
        """At the 50 steps of the stock call."""
        return self.shift_for(_STEPS)

    def shift_for(self, num_steps: int) -> float:
        return shift_of(self.pipeline.scheduler.config, self._mu(num_steps))

    def encode(self, prompts: list[str]) -> Rows:
        embeds, _ = self.pipeline.encode_prompt(
            prompts, device=self.text_device, max_sequence_length=self.max_sequence_length
        )
        return Rows({"prompt_embeds": embeds})

    def text_limits(self) -> dict[str, int]:
        """What the chat template puts before the prompt takes part of the length."""
        return {"tokenizer": room_for_prompt(self.pipeline.tokenizer, self.max_sequence_length)}

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        height, width = x_t.shape[2:]
        text = cond.tensors["prompt_embeds"]
        tokens = self.pipeline.transformer(
            hidden_states=pack(x_t),
            timestep=t * (self.timesteps / 1000),
            encoder_hidden_states=text,
            txt_ids=_places(1, 1, 1, text.shape[1], device=t.device),
            img_ids=_places(1, height // 2, width // 2, 1, device=t.device),
            return_dict=False,
        )[0]
        return unpack(tokens, height)

    def to_vae(self, x0: Tensor) -> Tensor:
        mean, std = self._normal()
        return pixel_shuffle(pixel_unshuffle(x0, 2) * std + mean, 2)

    def from_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._normal()
        return pixel_shuffle((pixel_unshuffle(latents, 2) - mean) / std, 2)

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": guidance_scale, "max_sequence_length": self.max_sequence_length}

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        return even_grid(self.pipeline, num_steps, self._mu(num_steps))

    def _mu(self, num_steps: int) -> float:
        return compute_empirical_mu(self.latent_shape[1] * self.latent_shape[2] // 4, num_steps)

    def _normal(self) -> tuple[Tensor, Tensor]:
        """(1, 4 C, 1, 1) mean and deviation of the autoencoder's patches."""
        norm = self.pipeline.vae.bn
        mean, variance = (values.float().view(1, -1, 1, 1) for values in (norm.running_mean, norm.running_var))
        return mean, (variance + self.pipeline.vae.config.batch_norm_eps).sqrt()


def _places(*sizes: int, device: torch.device) -> Tensor:
    """(tokens, 4), the time, row, column and place in the text of each."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))
