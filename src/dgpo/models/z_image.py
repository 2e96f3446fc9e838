"""Z-Image and Z-Image-Turbo (Z-Image Team 2025, arXiv 2511.22699).

A transformer over one stream of image and text tokens. Each kind is filled up to whole groups of 32 with learned
tokens, and the image's positions begin after the text's, so a row must enter with exactly its own tokens: rows keep
their length, and what padded them next to each other is cut off again.
The network's time runs from noise to data and so does its output: told `1 - t`, it answers `x0 - noise`.

Guidance: diffusers draws with `pos + g (pos - neg)`, where g = 0 is the conditional velocity alone. Our scale s is that
of `neg + s (pos - neg)`, where s = 1 is: s = g + 1, so diffusers' default `guidance_scale=5` is 6 here, and Turbo's 0
is 1. `cfg_normalization` is diffusers' and off as there; its `cfg_truncation`, also off there, would switch guidance
off towards the end of the walk and has no counterpart: the scale here is one for all t.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dgpo.models.chat import require_chat_template, room_for_prompt
from dgpo.models.grids import scheduler_shift, shifted_grid
from dgpo.models.guidance import linear_guidance
from dgpo.models.pipeline import Family
from dgpo.models.rows import Rows
from dgpo.models.sizes import fitting_length, fitting_side

_PATCH = 2  # the only one that diffusers' pipeline asks for
_GROUP = 32  # tokens


class ZImage(Family):
    """See `dgpo.models.pipeline.Family`."""

    cfg_normalization: float = 0.0
    """A guided velocity is at most this many times as long as the conditional one; 0: any length."""

    def __init__(self, pipeline: Any, resolution: int | None = None, max_sequence_length: int | None = None) -> None:
        """max_sequence_length: text tokens, the chat template's among them; None: 512."""
        self.pipeline = pipeline
        config, scale = pipeline.transformer.config, pipeline.vae_scale_factor
        require_chat_template(pipeline.tokenizer)
        positions, *sides = config.axes_lens
        # text is at 1, 2, ..., filled up to groups, and the image at the position after it
        longest = (positions - 2) // _GROUP * _GROUP
        self.max_sequence_length = fitting_length(max_sequence_length, own=512, largest=longest)
        side = fitting_side(resolution, 1024, scale * _PATCH, min(sides) * scale * _PATCH)
        self.latent_shape = config.in_channels, side // scale, side // scale

    @property
    def shift(self) -> float:
        return scheduler_shift(self.pipeline.scheduler.config, self.latent_shape)

    def encode(self, prompts: list[str]) -> Rows:
        embeds, _ = self.pipeline.encode_prompt(
            list(prompts),  # diffusers writes the chat template into the list it is given
            device=self.text_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        length = torch.tensor([len(row) for row in embeds], device=embeds[0].device)
        return Rows({"prompt_embeds": pad_sequence(embeds, batch_first=True), "length": length})

    def text_limits(self) -> dict[str, int]:
        """What the chat template puts before the prompt takes part of the length."""
        return {"tokenizer": room_for_prompt(self.pipeline.tokenizer, self.max_sequence_length)}

    def predict(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        lengths = cond.tensors["length"].tolist()
        output = self.pipeline.transformer(
            list(x_t.unsqueeze(2)),  # n of (C, 1, h, w), one frame each
            (1000 - self.timesteps * t) / 1000,  # 1 - t, rounded as in the stock call
            [row[:length] for row, length in zip(cond.tensors["prompt_embeds"], lengths)],
            return_dict=False,
        )[0]
        return -torch.stack(output).squeeze(2)  # (n, C, h, w)

    def guide(self, v_uncond: Tensor, v_cond: Tensor, scale: float) -> Tensor:
        v = linear_guidance(v_uncond, v_cond, scale)
        if not self.cfg_normalization:
            return v
        longest = self.cfg_normalization * _norm(v_cond)
        return v * (longest / _norm(v)).clamp(max=1)

    def stock_call(self, guidance_scale: float) -> dict[str, Any]:
        return {"guidance_scale": guidance_scale - 1, "max_sequence_length": self.max_sequence_length}

    def scheduler_sigmas(self, num_steps: int) -> Tensor:
        return shifted_grid(self.pipeline, num_steps, self.latent_shape)


def _norm(v: Tensor) -> Tensor:
    """(n, C, h, w) -> (n, 1, 1, 1), the length of each image's velocity."""
    return torch.linalg.vector_norm(v, dim=(1, 2, 3), keepdim=True)
