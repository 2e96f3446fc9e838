from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

import dgpo
import dgpo.models
from dgpo.errors import UserError
from dgpo.models import EMBEDDED, load_model, locate
from dgpo.models.sd3 import SD3


def test_a_folder_is_loaded_by_its_family_and_without_the_network(folder, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = load_model(str(folder), resolution=96)
    assert isinstance(model.family, SD3)
    assert model.latent_shape == (4, 12, 12)
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("no/such/folder", "nowhere", "./owner/name", str(folder / "oops"), "runs/oops"):
        with pytest.raises(UserError, match="there is no folder"):
            load_model(name)


def test_locating_a_model(folder, monkeypatch):
    package = Path(dgpo.__file__).parent
    assert EMBEDDED["tiny-sd3"] == package / "worlds" / "shapes" / "assets" / "tiny-sd3"
    monkeypatch.setitem(EMBEDDED, "tiny-sd3", folder)
    assert locate("tiny-sd3") == str(folder)
    assert locate(folder) == str(folder)
    assert locate("stabilityai/stable-diffusion-3.5-medium") == "stabilityai/stable-diffusion-3.5-medium"
    with pytest.raises(UserError, match=r"no model_index\.json"):
        locate(folder / "vae")


def test_an_unknown_family_is_told_what_is_supported_and_what_an_adapter_needs(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(UserError) as error:
        load_model(tmp_path)
    for part in (
        "is a KandinskyPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "Family",
        "encode",
        "VelocityModel",
    ):
        assert part in str(error.value)


def test_damaged_folders_are_named(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read model_index\.json"):
        load_model(tmp_path)
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="cannot load the pipeline"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "fp8"}, "dtype='fp8' is unknown"),
        ({"finetune": "loar"}, "Did you mean 'lora'"),
        ({"device": "gpu"}, "device='gpu' cannot be used"),
        ({"sets": ("old", "emma")}, "Did you mean 'ema'"),
        ({"distilled_guidance": 3.5}, "is not told its guidance"),
    ],
)
def test_bad_settings_are_explained(folder, settings, message):
    with pytest.raises(UserError, match=message):
        load_model(folder, **settings)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_a_model_that_does_not_fit_says_what_would(folder, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(torch.nn.Module, "requires_grad_", full)
    with pytest.raises(UserError, match=r"does not fit into the memory of cpu in fp32 .* dgpo plan"):
        load_model(folder, device="cpu")


@pytest.mark.slow
def test_other_errors_of_loading_are_left_alone(folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(torch.nn.Module, "requires_grad_", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        load_model(folder, device="cpu")


def test_a_gpu_that_is_named_is_the_current_one(folder, monkeypatch):
    """So that rewards, which say "cuda" alone, and their streams are on it."""
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cuda:1", "cuda", "cpu"):
        dgpo.models._device(device)
    assert chosen == [torch.device("cuda", 1)]


def test_a_long_negative_prompt_is_told_as_any_other(folder):
    short, long = (dgpo.models.load_model(folder, device="cpu", negative_prompt=text) for text in ("x", "ugly " * 600))
    assert short.long_prompts(["a cat"]) == []
    (line,) = long.long_prompts(["a cat"])
    assert line.startswith("1 of 2 prompts is longer")
