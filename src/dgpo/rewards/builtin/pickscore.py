"""PickScore: how much people who gave this prompt would like the image (Kirstain et al. 2023, arXiv 2305.01569).

    score = exp(logit_scale) cos(image embedding, text embedding)

of a CLIP ViT-H/14 that was trained on the Pick-a-Pic preferences. Published weights give about 17 to 25, and papers
quote this number (DGPO's 21.72 to 23.89). Flow-GRPO and DGPO train on it divided by 26, so that it lies near 1:
`PickScore(scale=1 / 26)`. Alone, the scale of a reward changes nothing, since advantages are normalised; in a weighted
sum it is part of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dgpo.rewards.builtin.towers import Towers


class PickScore:
    """images (B, 3, H, W) in [0, 1] -> (B,). The arguments but `scale` are those of `Towers`."""

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        *,
        scale: float = 1.0,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        self.towers = Towers("pickscore", model, processor, device=device, dtype=dtype, batch_size=batch_size)
        self.scale = scale

    def check_row(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Whether the end of a prompt is cut."""
        return self.towers.check_row(prompt)

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return self.scale * self.towers.logit_scale * self.towers.cosine(images, prompts)
