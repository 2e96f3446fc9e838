"""A tiny random SanaPipeline from the real classes: 128 pixels, 32 of them a latent, one text token per byte."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from tiny import _enliven
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer


def tiny_sana(seed: int = 0, **transformer_settings: Any) -> SanaPipeline:
    """Built in a fraction of a second; equal seeds give equal weights. The scheduler is the published pipelines'."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "sample_size": 4,
        }
        transformer = SanaTransformer2DModel(**settings | transformer_settings)
        tokenizer = _tokenizer()
        pipeline = SanaPipeline(
            transformer=transformer,
            scheduler=DPMSolverMultistepScheduler(
                use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
            ),
            vae=_vae(),
            text_encoder=_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
        )
        _enliven(transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny_sana(directory: Path, seed: int = 0, **transformer_settings: Any) -> Path:
    """The same as a folder for `load_model` or `from_pretrained`."""
    tiny_sana(seed, **transformer_settings).save_pretrained(directory)
    return directory


def _vae() -> AutoencoderDC:
    """Six levels, as in the real one."""
    settings: dict[str, Any] = {}
    for half in ("encoder", "decoder"):
        settings[f"{half}_block_types"] = ("ResBlock",) * 5 + ("EfficientViTBlock",)
        settings[f"{half}_block_out_channels"] = (8,) * 6
        settings[f"{half}_layers_per_block"] = (1,) * 6
        settings[f"{half}_qkv_multiscales"] = ((),) * 5 + ((5,),)
    return AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **settings)


def _text_encoder(vocab_size: int) -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
    )
    return Gemma2Model(config).eval()


def _tokenizer() -> GemmaTokenizer:
    """Each line of the pipeline's own instruction is one token: a thousand of them would only cost time."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = GemmaTokenizer(vocab=vocab, merges=[], add_bos_token=True)
    tokenizer.add_tokens(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
    return tokenizer
