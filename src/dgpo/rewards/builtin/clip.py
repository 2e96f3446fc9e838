"""CLIP score: how well the image fits its prompt (Radford et al. 2021, arXiv 2103.00020).

    score = scale cos(image embedding, text embedding)

scale is 1 here, so that scores of good images lie near 0.3. Others use the same cosine with a scale of 100, of 2.5
(CLIPScore, Hessel et al. 2021, who also clip it at zero) or of 100 / 30 (the code of DGPO).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dgpo.rewards.builtin.towers import Towers


class ClipScore:
    """images (B, 3, H, W) in [0, 1] -> (B,). The arguments but `scale` are those of `Towers`."""

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        *,
        scale: float = 1.0,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        self.towers = Towers("clip", model, processor, device=device, dtype=dtype, batch_size=batch_size)
        self.scale = scale

    def check_row(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Whether the end of a prompt is cut."""
        return self.towers.check_row(prompt)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return self.scale * self.towers.cosine(images, prompts)
