"""LAION's improved aesthetic predictor: how much people like an image, about 1 to 10; the prompt is not read.

    score = MLP(image embedding)     of CLIP ViT-L/14, unit length; linear layers D-1024-128-64-16-1, nothing between

The predictor (github.com/christophschuhmann/improved-aesthetic-predictor) has dropout between its layers, which does
nothing when it scores, and no activation, so that it is an affine function of the embedding. Its file
`sac+logos+ava1-l14-linearMSE.pth` holds tensors only and is read as it is, as is a safetensors file of the same names
(`layers.0.weight`, ...). Any other CLIP would still give numbers, which mean nothing: keep ViT-L/14 of OpenAI.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dgpo.rewards.builtin.predictor import predictor
from dgpo.rewards.builtin.towers import Towers
from dgpo.rewards.builtin.weights import fill, place, read_tensors


class Aesthetic:
    """images (B, 3, H, W) in [0, 1] -> (B,). predictor: the MLP's file; the other arguments are those of `Towers`."""

    def __init__(
        self,
        predictor: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        self.towers = Towers("aesthetic", model, processor, device=device, dtype=dtype, batch_size=batch_size)
        self.predictor = predictor

    @cached_property
    def mlp(self) -> nn.Module:
        """The predictor's layers, on the CPU in fp32: they cost nothing beside the image tower."""
        tensors = read_tensors(self.predictor)
        mlp = predictor(tensors["layers.0.weight"].shape[1] if "layers.0.weight" in tensors else 768)
        fill(mlp, tensors, self.predictor)
        return place(mlp, "cpu", "float32")

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        return self.mlp(self.towers.image_embeds(images)).squeeze(-1)
