"""Tiny random detectors and a tiny random CLIP, built from the config classes of transformers and saved to folders.

Some weights are enlarged, so that the networks are sure of something and say different things of different pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerSwinConfig,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

LABELS = ("person", "diningtable", "mouse", "motorbike")  # COCO's words in several published spellings
NAMES = ("person", "dining table", "computer mouse", "motorcycle")
SIDES = (64, 128)


def _seeded(build: Any, *arguments: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments).eval()


def _swin(kind: Any) -> Any:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    depths, heads = [1, 1, 1, 1], [1, 1, 2, 2]
    return kind(image_size=32, embed_dim=8, depths=depths, num_heads=heads, window_size=2, out_features=stages)


def save_mask2former(folder: Path) -> Path:
    config = Mask2FormerConfig(
        backbone_config=_swin(SwinConfig),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=6,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = _seeded(Mask2FormerForUniversalSegmentation, config)
    model.class_predictor.weight.data *= 40
    model.model.transformer_module.decoder.mask_predictor.mask_embedder.layers[-1].layers[0].weight.data *= 4
    model.save_pretrained(folder)
    return folder


def save_maskformer(folder: Path) -> Path:
    from transformers import DetrConfig

    detr = DetrConfig(
        d_model=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        num_queries=6,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
    )
    config = MaskFormerConfig(
        backbone_config=_swin(MaskFormerSwinConfig),
        decoder_config=detr.to_dict(),
        fpn_feature_size=32,
        mask_feature_size=32,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = _seeded(MaskFormerForInstanceSegmentation, config)
    model.class_predictor.weight.data *= 40
    model.save_pretrained(folder)
    return folder


def save_yolos(folder: Path) -> Path:
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[48, 48],
        num_detection_tokens=6,
        initializer_range=0.7,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = _seeded(YolosForObjectDetection, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.vit.embeddings.detection_tokens.data.normal_()
    model.save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return folder


def save_clip(folder: Path, vision: int = 32) -> Path:
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
    shared = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    picture = {"image_size": vision, "patch_size": 8}
    shared["initializer_factor"] = 8.0
    config = CLIPConfig(text_config=shared | text, vision_config=shared | picture, projection_dim=16)
    _seeded(CLIPModel, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": vision}, crop_size=vision).save_pretrained(folder)
    return folder
