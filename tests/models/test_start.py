"""A LoRA that stock diffusers reads is where training goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity import PROMPTS, generators

from dgpo.config import Config, LoraConfig
from dgpo.errors import UserError

SETTINGS = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def trained(load, tmp_path_factory):
    """A LoRA folder, and the velocities of the model that wrote it."""
    model = load(lora=SETTINGS)
    with torch.no_grad():
        for parameter in model.weights.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    folder = tmp_path_factory.mktemp("lora")
    model.weights.export(folder, "policy")
    return folder, velocity(model)


def velocity(model, weights="policy"):
    x, t = model.init_noise(generators()), torch.tensor([0.9, 0.5, 0.2])
    with torch.no_grad():
        return model.velocity(x, t, model.encode(PROMPTS), weights=weights)


@pytest.mark.parametrize("file", ["", "pytorch_lora_weights.safetensors"])
def test_every_set_but_the_reference_starts_from_it(load, trained, file):
    folder, expected = trained
    model = load(lora=replace(SETTINGS, start=str(folder / file)))
    for name in ("policy", "old", "ema"):
        assert torch.equal(velocity(model, name), expected)
    assert torch.equal(velocity(model, "ref"), velocity(load(lora=SETTINGS)))
    assert [p.requires_grad for p in model.weights.parameters()] == [True] * len(model.weights.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 8, "alpha": 8}, "has rank 4 and alpha 8; the config says lora.rank=8 and lora.alpha=8"),
        ({"alpha": 4}, "has rank 4 and alpha 8; the config says lora.rank=4 and lora.alpha=4"),
        ({"target_modules": ("to_q",)}, r"does not fit this model: .* tensors do not fit"),
    ],
)
def test_other_settings_are_told(load, trained, changes, message):
    with pytest.raises(UserError, match=message):
        load(lora=replace(SETTINGS, start=str(trained[0]), **changes))


def test_what_is_no_lora_is_refused(load, tmp_path):
    with pytest.raises(UserError, match="there is no such folder or file"):
        load(lora=replace(SETTINGS, start=str(tmp_path / "nowhere")))
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(UserError, match="cannot be read as a LoRA"):
        load(lora=replace(SETTINGS, start=str(tmp_path)))
    with pytest.raises(UserError, match=r"continues a LoRA, and finetune='full' trains none"):
        Config(finetune="full", lora=replace(SETTINGS, start="somewhere"))
