"""What stands in for tokenizers and text encoders, so that a pipeline's own `encode_prompt` tells the text's shape.

The encoders run on the meta device and answer with zeros of the shapes they found, which take no memory. A tokenizer
whose vocabulary is not there answers with as many tokens as the pipeline allows: the longest text, not the usual one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_LONGEST = 512  # tokens, where a tokenizer knows no limit


class LongestText:
    """A tokenizer for which every text is as long as it may be."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.model_max_length: int = settings.get("model_max_length") or _LONGEST
        self.padding_side = "right"
        self.added_tokens_encoder: dict[str, int] = {}

    def __call__(self, text: str | list[str], max_length: int | None = None, **_: Any) -> Any:
        from transformers import BatchEncoding

        rows = 1 if isinstance(text, str) else len(text)
        length = min(max_length or self.model_max_length, max(self.model_max_length, _LONGEST))
        length = length if length < 10**6 else _LONGEST
        ids = torch.zeros(rows, length, dtype=torch.long)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def tokenize(self, text: str, **_: Any) -> list[str]:
        """As `encode`."""
        return [""] * len(self.encode(text))

    def encode(self, text: str, **_: Any) -> list[int]:
        """About four characters a token."""
        return [0] * (len(text) // 4)

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(message["content"] for message in messages)

    def batch_decode(self, ids: Any, **_: Any) -> list[str]:
        return [""] * len(ids)


class _OnCpu:
    """A network that says it is on the CPU, where a pipeline then puts token numbers and masks."""

    device = torch.device("cpu")

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


@contextmanager
def encoding(pipeline: Any, network: str) -> Iterator[None]:
    """Inside the block a pipeline on the meta device encodes prompts into zeros on the CPU."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    encoders = [part for name, part in parts.items() if name not in ("vae", network)]
    for encoder in encoders:
        encoder.forward = _zeros_of(encoder.forward)
    vars(pipeline)[network] = _OnCpu(parts[network])
    try:
        yield
    finally:
        vars(pipeline)[network] = parts[network]
        for encoder in encoders:
            del encoder.forward


def _zeros_of(forward: Any) -> Any:
    """`forward` with zeros on the CPU in the place of its results on the meta device."""

    def zero(result: Tensor) -> Tensor:
        return torch.zeros((), dtype=result.dtype).expand(result.shape) if result.is_meta else result

    return lambda *args, **kwargs: tree_map_only(Tensor, zero, forward(*args, **kwargs))
