"""ImageReward: a preference score of image and prompt together (Xu et al. 2023, arXiv 2304.05977).

    score = (MLP(h) - 0.16717) / 1.03334,     h = the first token of BLIP's text encoder, which attends to the image

The MLP has linear layers 768-1024-128-64-16-1 with nothing between; over the authors' prompts scores have mean 0 and
deviation 1. The authors' package does not import beside transformers 5, so the model is put together from the BLIP
classes of transformers, which compute the same, and reads the published `ImageReward.pt`. All sizes follow from the
tensors of that file; heads are 64 wide, as in every BLIP. Deviation: images go through the network in batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dgpo.errors import UserError
from dgpo.rewards.builtin.predictor import predictor
from dgpo.rewards.builtin.preprocess import Preprocess
from dgpo.rewards.builtin.weights import check_batch_size, fill, from_pretrained, place, read_tensors
from dgpo.rewards.rows import cut_doubt

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the MLP's output, over the authors' prompts
MAX_TOKENS = 35
_HEAD = 64
_VISION_NAMES = (  # the authors' ViT -> transformers, replaced in this order
    ("blocks.", "encoder.layers."), (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."), (".attn.proj.", ".self_attn.projection."),
    ("patch_embed.proj.", "embeddings.patch_embedding."), ("pos_embed", "embeddings.position_embedding"),
    ("cls_token", "embeddings.class_embedding"),
)  # fmt: skip


class _Parts(NamedTuple):
    vision: Any
    text: Any
    mlp: nn.Module
    tokenizer: Any
    preprocess: Preprocess


class ImageReward:
    """images (B, 3, H, W) in [0, 1] -> (B,), about -2 to 2.

    weights: the published file. tokenizer: folder or hub id of BERT's. device None: CUDA where there is one.
    """

    def __init__(
        self,
        weights: str = "THUDM/ImageReward/ImageReward.pt",
        tokenizer: str = "google-bert/bert-base-uncased",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        self.weights, self.tokenizer = weights, tokenizer
        self.device, self.dtype, self.batch_size = device, dtype, check_batch_size(batch_size)

    @cached_property
    def parts(self) -> _Parts:
        """The two encoders and the MLP, filled from the file, on the device and in the type asked for."""
        tensors = read_tensors(self.weights)
        if "mlp.layers.0.weight" not in tensors:
            raise UserError(f"{self.weights!r} is no ImageReward: it has no tensor mlp.layers.0.weight")
        vision, text = _vision(_under(tensors, "blip.visual_encoder.")), _text(_under(tensors, "blip.text_encoder."))
        mlp = predictor(text.config.hidden_size)
        fill(vision, _vision_names(_under(tensors, "blip.visual_encoder.")), self.weights)
        fill(text, _under(tensors, "blip.text_encoder."), self.weights)
        fill(mlp, _under(tensors, "mlp."), self.weights)
        size = vision.config.image_size
        return _Parts(
            place(vision, self.device, self.dtype),
            place(text, self.device, self.dtype),
            place(mlp, self.device, "float32"),
            self._tokenizer,
            Preprocess(size, size),
        )

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return from_pretrained(AutoTokenizer, self.tokenizer, "imagereward")

    def check_row(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Whether the end of a prompt is cut."""
        return cut_doubt(prompt, lambda: self._tokenizer, MAX_TOKENS)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Tensor:
        vision, text, mlp, tokenizer, preprocess = self.parts
        scores = []
        for start in range(0, len(prompts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            pixels = preprocess(images[rows].to(vision.device).float()).to(vision.dtype)
            seen = vision(pixel_values=pixels).last_hidden_state  # (b, patches + 1, width)
            tokens = tokenizer(
                prompts[rows], padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            inputs = {name: tokens[name].to(text.device) for name in ("input_ids", "attention_mask")}
            first = text(**inputs, encoder_hidden_states=seen).last_hidden_state[:, 0]
            scores.append((mlp(first.float()).squeeze(-1).cpu() - MEAN) / STD)
        return torch.cat(scores)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it and without the positions 0, 1, 2, ... that some versions stored."""
    below = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    below.pop("embeddings.position_ids", None)
    return below


def _vision_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in tensors.items():
        for ours, theirs in _VISION_NAMES:
            name = name.replace(ours, theirs)
        named[f"post_layer{name}" if name.startswith("norm.") else name] = tensor
    return named


def _vision(tensors: dict[str, Tensor]) -> Any:
    """An empty vision transformer of the sizes that the tensors have."""
    from transformers import BlipVisionConfig, BlipVisionModel

    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_count(tensors, "blocks."),
        num_attention_heads=width // _HEAD,
        image_size=patch * round((tensors["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    return BlipVisionModel(config)


def _text(tensors: dict[str, Tensor]) -> Any:
    """An empty text encoder with cross-attention, of the sizes that the tensors have."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_count(tensors, "encoder.layer."),
        num_attention_heads=width // _HEAD,
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,  # what gives a layer its cross-attention; nothing is masked causally
    )
    return BlipTextModel(config, add_pooling_layer=False)


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))
