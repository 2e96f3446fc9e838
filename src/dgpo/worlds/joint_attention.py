"""SD3's joint attention from plain matrix products.

PyTorch's fused attention has no fast bf16 kernel for CPUs: for the 80 tokens of an embedded model its backward pass
takes five times longer than these products do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class JointAttention:
    """An attention processor of diffusers that computes what its JointAttnProcessor2_0 does, without masks."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> tuple[Tensor, Tensor]:
        """Image tokens (n, i, width) and text tokens (n, t, width) -> both, attended to each other."""
        image, text = hidden_states, encoder_hidden_states
        split = [image.shape[1], text.shape[1]]

        def heads(of_image: Tensor, of_text: Tensor) -> Tensor:
            return torch.cat([of_image, of_text], dim=1).unflatten(2, (attn.heads, -1)).transpose(1, 2)

        def normed(norm: Any, tokens: Tensor) -> Tensor:
            return norm(tokens.unflatten(2, (attn.heads, -1))).flatten(2).to(tokens.dtype)

        query = heads(normed(attn.norm_q, attn.to_q(image)), normed(attn.norm_added_q, attn.add_q_proj(text)))
        key = heads(normed(attn.norm_k, attn.to_k(image)), normed(attn.norm_added_k, attn.add_k_proj(text)))
        value = heads(attn.to_v(image), attn.add_v_proj(text))
        weights = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1).to(value.dtype)
        image, text = (weights @ value).transpose(1, 2).flatten(2).split(split, dim=1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)
