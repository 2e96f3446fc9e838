"""What tests of the loop share."""

from __future__ import annotations

import pytest
import torch
from updates import Spy

from dgpo import load_model
from dgpo.core import seeds


@pytest.fixture
def fresh(tiny_folder):
    """A new model, wrapped; its sets apart from each other if asked for, `old` no longer the policy."""

    def made(config, apart=False, spoil=lambda call, v: v):
        model = load_model(tiny_folder, device="cpu", finetune=config.finetune, lora=config.lora, seed=config.seed)
        if apart:
            for name in ("policy", "old", "ema"):
                for place, tensor in enumerate(model.weights.tensors(name).values()):
                    for scale, key in ((0.05, "from ref"), (0.005, name)):
                        stream = seeds.generator(0, key, place)
                        tensor.add_(torch.randn(tensor.shape, generator=stream), alpha=scale)
            model.weights.stepped()
        return Spy(model, spoil)

    return made
