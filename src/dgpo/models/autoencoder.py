"""From images to latents by the mean of the autoencoder, so that the same image has the same latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def encoded_mean(vae: Any, images: Tensor) -> Tensor:
    """Images in [-1, 1] -> the autoencoder's own latents, fp32; their mean where they are random."""
    encoded = vae.encode(images.to(vae.dtype), return_dict=False)[0]
    return (encoded if isinstance(encoded, Tensor) else encoded.mode()).float()  # AutoencoderTiny is not random
