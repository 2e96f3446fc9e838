"""CLIP's two towers (Radford et al. 2021, arXiv 2103.00020): embeddings of unit length, and their cosine.

Shared by the rewards that are CLIP models with other weights. A prompt that several images share is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo.rewards.builtin.preprocess import Preprocess, published
from dgpo.rewards.builtin.weights import check_batch_size, from_pretrained, place
from dgpo.rewards.rows import cut_doubt


class _Parts(NamedTuple):
    model: Any  # transformers.CLIPModel
    tokenizer: Any
    preprocess: Preprocess


class Towers:
    """A CLIPModel of transformers with its tokenizer and image preprocessing, loaded when first used.

    reward: its name, for errors. model: folder or hub id. processor: folder or id of tokenizer and image processor,
    the model's own if None. device None: CUDA where there is one. batch_size: images, and prompts, of one forward.
    load: makes the model from `model` in another way than from_pretrained.
    """

    def __init__(
        self,
        reward: str,
        model: str,
        processor: str | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 32,
        load: Callable[[str], Any] | None = None,
    ) -> None:
        self.reward, self.model, self.processor = reward, str(model), str(processor or model)
        self.device, self.dtype, self.load = device, dtype, load
        self.batch_size = check_batch_size(batch_size)

    @cached_property
    def parts(self) -> _Parts:
        """Model, tokenizer and preprocessing, on the device and in the type asked for."""
        from transformers import CLIPImageProcessor, CLIPModel

        preprocess = published(from_pretrained(CLIPImageProcessor, self.processor, self.reward), self.processor)
        model = self.load(self.model) if self.load else from_pretrained(CLIPModel, self.model, self.reward)
        return _Parts(place(model, self.device, self.dtype), self.tokenizer, preprocess)

    @cached_property
    def tokenizer(self) -> Any:
        """Its own, without the model."""
        from transformers import AutoTokenizer

        return from_pretrained(AutoTokenizer, self.processor, self.reward)

    @cached_property
    def length(self) -> int:
        """Tokens that the text tower reads, from the configuration alone."""
        from transformers import CLIPConfig

        config = from_pretrained(CLIPConfig, self.processor if self.load else self.model, self.reward)
        return config.text_config.max_position_embeddings

    def check_row(self, prompt: str) -> str | None:
        """The doubt about a prompt of which the end is cut."""
        return cut_doubt(prompt, lambda: self.tokenizer, self.length)

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature, exp of the stored logit_scale."""
        return self.parts.model.logit_scale.float().exp().item()

    @torch.no_grad()
    def image_embeds(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) float in [0, 1] -> (B, D) fp32 on the CPU, unit length."""
        model, _, preprocess = self.parts
        embeds = []
        for batch in images.split(self.batch_size):
            pixels = preprocess(batch.to(model.device).float()).to(model.dtype)
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            embeds.append(F.normalize(model.visual_projection(pooled).float(), dim=-1).cpu())
        return torch.cat(embeds)

    @torch.no_grad()
    def text_embeds(self, prompts: list[str]) -> Tensor:
        """B prompts -> (B, D) fp32 on the CPU, unit length. Cut at the length that the model can read (77 tokens)."""
        model, tokenizer, _ = self.parts
        different = list(dict.fromkeys(prompts))
        length = model.config.text_config.max_position_embeddings
        embeds = []
        for start in range(0, len(different), self.batch_size):
            batch = different[start : start + self.batch_size]
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
            inputs = {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
            pooled = model.text_model(**inputs).pooler_output
            embeds.append(F.normalize(model.text_projection(pooled).float(), dim=-1).cpu())
        return torch.cat(embeds)[[different.index(prompt) for prompt in prompts]]

    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B,) in [-1, 1]: the cosine of each image with its own prompt."""
        return (self.image_embeds(images) * self.text_embeds(prompts)).sum(-1)
