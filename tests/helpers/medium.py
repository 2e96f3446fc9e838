"""A medium random SD3, large enough that its activations and weights are what memory goes into, and real peaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from tiny import tiny_sd3  # pyright: ignore[reportMissingImports] (tests/models)

import dgpo
from dgpo import DGPO, Config, LoraConfig, Sampling
from dgpo.bench.overhead import _tensors_of
from dgpo.training.setup import load
from dgpo.utils.peak_memory import peak_memory


def save_medium(folder: Path) -> Path:
    """Six layers of width 256; 64 pixels in 16 tokens."""
    pipeline = tiny_sd3()
    pipeline.transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=32,
        caption_projection_dim=256,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    pipeline.save_pretrained(folder)
    return folder


def short(model: Path, out: Path, **changes: Any) -> Config:
    """One iteration of two groups of three images."""
    settings: dict[str, Any] = {
        "model": str(model),
        "out": str(out),
        "device": "cpu",
        "iterations": 1,
        "prompts": ("a red cat", "two dogs"),
        "num_groups": 2,
        "group_size": 3,
        "rewards": {"random": 1.0},
        "eval_every": 0,
        "noise_scale_every": 0,
        "checkpoint_every": 0,
        "report": False,
        "algorithm": DGPO(beta=3.0, num_points=2, t_sampling="uniform"),
        "sampling": Sampling(num_inference_steps=2, guidance_scale=2.0),
        "lora": LoraConfig(rank=4, alpha=8),
    }
    return Config(**{**settings, **changes})


def measured_peak(config: Config) -> int:
    """Bytes of all tensors at the worst moment of a run, the model's among them."""
    torch.set_num_threads(1)
    device = torch.device(config.device)
    model: Any = load(config, device)
    with peak_memory(list(_tensors_of(model)), device) as peak:
        dgpo.train(config, model=model, reward_functions={"random": lambda i, prompts, m: torch.rand(len(prompts))})
    return peak.bytes
