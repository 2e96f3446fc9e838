"""SD3.5-M in its real shape, on the meta device: what the authors' LoRA trains there."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from diffusers import SD3Transformer2DModel
from published import SD35M

from dgpo.models.sd3 import SD3
from dgpo.recipes import recipe


@pytest.mark.parametrize(
    ("targets", "millions"),
    [
        (SD3.lora_targets, 37.6),
        ([target.removeprefix("attn.") for target in SD3.lora_targets], 47.8),  # with attn2 of the 13 dual layers
    ],
)
def test_trained_parameters_are_the_authors(targets: Any, millions: float) -> None:
    lora = recipe("sd35m_ocr").lora
    with torch.device("meta"):
        network = SD3Transformer2DModel(**SD35M)
        network.requires_grad_(False)
        settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(targets))
        network.add_adapter(settings)
    trained = {key: p.numel() for key, p in network.named_parameters() if p.requires_grad}
    assert sum(trained.values()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert any(".attn2." in key for key in trained) == (millions > 40)
