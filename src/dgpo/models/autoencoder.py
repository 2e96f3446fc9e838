"""The autoencoder: its precision, and from images to latents by its mean, so that an image has the same latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def encoded_mean(vae: Any, images: Tensor) -> Tensor:
    """Images in [-1, 1] -> the autoencoder's own latents, fp32; their mean where they are random."""
    encoded = vae.encode(images.to(vae.dtype), return_dict=False)[0]
    return (encoded if isinstance(encoded, Tensor) else encoded.mode()).float()  # AutoencoderTiny is not random


def compute_in(vae: nn.Module, dtype: torch.dtype) -> None:
    """Keep it in another precision, and in the order that convolutions of such precision read: channels last."""
    nn.Module.to(vae, dtype)  # diffusers warns where there is nothing to warn of
    for weight in vae.parameters():
        if weight.dim() == 4:  # of three dimensions in space and time, as Qwen-Image's, there is no such kernel
            weight.data = weight.data.to(memory_format=torch.channels_last)
