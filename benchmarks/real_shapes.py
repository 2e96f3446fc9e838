"""Pipelines of published shapes with random weights, made on a device: what time and memory depend on.

The text encoders have the published widths and two layers each, and tokenizers of letters that are as long as theirs:
each prompt is encoded once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))  # shapes, tokenizers and the tiny pipelines


def made(name: str, device: torch.device) -> Any:
    """sd35m or flux_dev at real size, or tiny where the device is the CPU."""
    if device.type == "cpu":
        from tiny import tiny_sd3
        from tiny_flux import tiny_flux

        return {"sd35m": tiny_sd3, "flux_dev": tiny_flux}[name]()
    return {"sd35m": sd35m, "flux_dev": flux_dev}[name](device)


def save_configs(pipeline: Any, folder: Path) -> None:
    """What `dgpo plan` reads: everything of a pipeline folder but the weights."""
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module):
            if part is not None:
                part.save_pretrained(folder / name)
        elif hasattr(part, "save_config"):
            part.save_config(folder / name)
        else:
            part.config.save_pretrained(folder / name)


@contextmanager
def in_bf16(device: torch.device) -> Iterator[None]:
    """Modules are made on the device in bf16, so that a large one does not take twice its memory at first."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def text_parts(device: torch.device) -> dict[str, Any]:
    """Two CLIPs and a T5 of the published widths with two layers each; tokenizers of letters, as long as theirs."""
    from tiny import _tokenizer
    from tiny_flux import _t5_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    def clip(width: int, heads: int) -> CLIPTextConfig:
        own = {"vocab_size": 49408, "eos_token_id": 513, "bos_token_id": 512, "pad_token_id": 513}
        size = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
        return CLIPTextConfig(**own, **size, projection_dim=width, num_hidden_layers=2)

    tokenizer = _tokenizer()
    tokenizer.model_max_length = 77
    t5 = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=2, feed_forward_proj="gated-gelu", use_cache=False
    )
    with in_bf16(device):
        return {
            "clip_l": CLIPTextModelWithProjection(clip(768, 12)),
            "clip_l_plain": CLIPTextModel(clip(768, 12)),
            "clip_g": CLIPTextModelWithProjection(clip(1280, 20)),
            "t5": T5EncoderModel(t5),
            "tokenizer": tokenizer,
            "t5_tokenizer": _t5_tokenizer(),
        }


def autoencoder(device: torch.device, scaling_factor: float, shift_factor: float) -> Any:
    from diffusers import AutoencoderKL
    from published import VAE

    with device:
        return AutoencoderKL(**VAE, scaling_factor=scaling_factor, shift_factor=shift_factor)


def sd35m(device: torch.device) -> Any:
    """2.2 billion parameters."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from published import SD35M

    text = text_parts(device)
    with in_bf16(device):
        transformer = SD3Transformer2DModel(**SD35M).to(torch.bfloat16)  # its table of positions is fp32
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(device, 1.5305, 0.0609),
        text_encoder=text["clip_l"],
        tokenizer=text["tokenizer"],
        text_encoder_2=text["clip_g"],
        tokenizer_2=text["tokenizer"],
        text_encoder_3=text["t5"],
        tokenizer_3=text["t5_tokenizer"],
    )


def flux_dev(device: torch.device) -> Any:
    """11.9 billion parameters."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    text = text_parts(device)
    with in_bf16(device):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(device, 0.3611, 0.1159),
        text_encoder=text["clip_l_plain"],
        tokenizer=text["tokenizer"],
        text_encoder_2=text["t5"],
        tokenizer_2=text["t5_tokenizer"],
    )
