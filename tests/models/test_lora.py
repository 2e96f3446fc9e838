"""Each program that a LoRA is exported for adds to every layer what dgpo adds, whatever rank and alpha are."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from programs import (
    a1111_deltas,
    comfyui_deltas,
    comfyui_flux,
    comfyui_flux2,
    comfyui_pixart,
    comfyui_qwen_image,
    comfyui_sd3,
    comfyui_unet,
    comfyui_z_image,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_sd3
from tiny_flux import tiny_flux
from tiny_flux2 import tiny_flux2
from tiny_qwen_image import tiny_qwen_image
from tiny_sana import tiny_sana
from tiny_vp import tiny_pixart, tiny_sd, tiny_sdxl
from tiny_z_image import tiny_z_image
from torch import Tensor

from dgpo.errors import UserError
from dgpo.models import LoraConfig, load_model
from dgpo.models.lora import KOHYA, PEFT, PEFT_CONFIG, SETTINGS, STOCK, kohya_metadata, mend

DEEP: Any = {  # two resnets a level, as published U-Nets have, for A1111 counts on it
    "layers_per_block": 2,
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
}
FAMILIES: dict[str, tuple[Any, str, Any]] = {
    "sd3": (tiny_sd3, STOCK, partial(comfyui_deltas, name_of=comfyui_sd3)),
    "flux": (tiny_flux, STOCK, partial(comfyui_deltas, name_of=comfyui_flux)),
    "flux2": (tiny_flux2, STOCK, partial(comfyui_deltas, name_of=comfyui_flux2)),
    "qwen": (tiny_qwen_image, STOCK, partial(comfyui_deltas, name_of=comfyui_qwen_image)),
    "z-image": (tiny_z_image, STOCK, partial(comfyui_deltas, name_of=comfyui_z_image)),
    "pixart": (tiny_pixart, PEFT, partial(comfyui_deltas, name_of=comfyui_pixart)),
    "sd": (partial(tiny_sd, **DEEP), KOHYA, partial(comfyui_deltas, name_of=comfyui_unet)),
    "sd-a1111": (partial(tiny_sd, **DEEP), KOHYA, a1111_deltas),
    "sdxl": (tiny_sdxl, KOHYA, partial(comfyui_deltas, name_of=comfyui_unet)),
}
SETTINGS_OF_RUNS = [
    LoraConfig(rank=4, alpha=8),
    LoraConfig(rank=4, alpha=6, rank_pattern={"to_q": 2}, alpha_pattern={"to_k": 1.5}),
]


def trained(folder: Path, lora: LoraConfig) -> Any:
    """A model whose adapters are no longer zero."""
    model: Any = load_model(folder, device="cpu", sets=(), lora=lora, resolution=64)
    with torch.no_grad():
        for number, parameter in enumerate(model.weights.parameters()):
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    return model


def our_deltas(model: Any) -> dict[str, Tensor]:
    """What PEFT itself adds to each layer's weight."""
    layers = {name: module for name, module in model.network.named_modules() if hasattr(module, "get_delta_weight")}
    return {name: layer.get_delta_weight("policy").detach().flatten(1) for name, layer in layers.items()}


def weights_of(pipeline: Any) -> dict[str, Tensor]:
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    return {name.removesuffix(".weight"): value for name, value in network.named_parameters()}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make, file, read = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("family")
    pipeline = make()
    pipeline.save_pretrained(folder)
    return folder, file, read, weights_of(pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("lora", SETTINGS_OF_RUNS, ids=["scale 2", "patterns"])
def test_programs_add_what_dgpo_adds(family: Any, lora: LoraConfig, tmp_path: Path) -> None:
    folder, file, read, weights = family
    model = trained(folder, lora)
    expected = our_deltas(model)
    assert min(delta.abs().max() for delta in expected.values()) > 0.01
    model.weights.export(tmp_path, "policy")
    found, unread = read(load_file(tmp_path / file), {layer: weights[layer] for layer in expected})
    assert unread == []
    assert found.keys() == expected.keys()
    for layer, delta in expected.items():
        torch.testing.assert_close(found[layer], delta, rtol=1e-5, atol=1e-7)


def test_an_export_of_before_is_half_as_strong_in_comfyui_until_it_is_mended(tmp_path: Path) -> None:
    tiny_sd3().save_pretrained(tmp_path / "model")
    model = trained(tmp_path / "model", LoraConfig(rank=4, alpha=8))
    before = export_of_before(model, tmp_path / "before")
    read = partial(comfyui_deltas, layers=weights_of_layers(model), name_of=comfyui_sd3)
    expected = our_deltas(model)
    for layer, delta in read(load_file(before))[0].items():
        torch.testing.assert_close(2 * delta, expected[layer])
    written = mend(before, tmp_path / "after")
    assert [file.name for file in written] == [STOCK]
    for layer, delta in read(load_file(written[0]))[0].items():
        assert torch.equal(delta, expected[layer]), "doubling rounds nothing"
    model.weights.export(tmp_path / "now", "policy")
    assert written[0].read_bytes() == (tmp_path / "now" / STOCK).read_bytes()


def export_of_before(model: Any, folder: Path) -> Path:
    """As version 0.1.0 wrote it: by diffusers, PEFT's settings in the metadata, B as it is trained."""
    kind, name = type(model.pipeline), model.family.network
    settings = model.network.peft_config["policy"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])
    layers = {f"{name}_lora_layers": model.weights.tensors("policy"), f"{name}_lora_adapter_metadata": settings}
    kind.save_lora_weights(folder, **layers)
    return folder / STOCK


def weights_of_layers(model: Any) -> dict[str, Tensor]:
    return {name: model.network.get_submodule(name).weight for name in our_deltas(model)}


def test_mending_a_unet_gives_it_the_names_that_other_programs_read(tmp_path: Path) -> None:
    tiny_sd().save_pretrained(tmp_path / "model")
    model = trained(tmp_path / "model", LoraConfig(rank=4, alpha=4))
    before = export_of_before(model, tmp_path / "before")
    written = mend(before.parent, tmp_path / "after")
    assert [file.name for file in written] == [KOHYA, STOCK]
    model.weights.export(tmp_path / "now", "policy")
    assert [file.read_bytes() for file in written] == [(tmp_path / "now" / file.name).read_bytes() for file in written]
    with pytest.raises(UserError, match="needs no mending: its alpha is its rank"):
        mend(tmp_path / "after", tmp_path / "again")


def test_mending_a_peft_folder(tmp_path: Path) -> None:
    pipeline = tiny_pixart()
    pipeline.save_pretrained(tmp_path / "model")
    model = trained(tmp_path / "model", LoraConfig(rank=4, alpha=8))
    network = tiny_pixart().transformer
    import peft

    (tmp_path / "before").mkdir()
    settings = model.network.peft_config["policy"].to_dict()
    peft.LoraConfig(**settings).save_pretrained(str(tmp_path / "before"))
    wrapped = {f"base_model.model.{key}": t.contiguous() for key, t in model.weights.tensors("policy").items()}
    save_file(wrapped, tmp_path / "before" / PEFT)
    mend(tmp_path / "before", tmp_path / "after")
    loaded: Any = PeftModel.from_pretrained(network, str(tmp_path / "after"), adapter_name="policy")
    for layer, delta in our_deltas(model).items():
        module = loaded.base_model.model.get_submodule(layer)
        assert module.scaling["policy"] == 1.0
        assert torch.equal(module.get_delta_weight("policy").flatten(1), delta)


def test_what_cannot_be_mended_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no LoRA that dgpo exported: give the file"):
        mend(tmp_path, tmp_path / "out")
    (tmp_path / STOCK).write_bytes(b"x" * 30)
    with pytest.raises(UserError, match="cannot be read as a LoRA"):
        mend(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="exists already and is not replaced"):
        mend(tmp_path, tmp_path)
    save_file({"transformer.a.lora_A.weight": torch.ones(1, 1)}, tmp_path / STOCK)
    with pytest.raises(UserError, match="does not tell rank and alpha"):
        mend(tmp_path, tmp_path / "out")
    tiny_sd3().save_pretrained(tmp_path / "model")
    trained(tmp_path / "model", LoraConfig(rank=4, alpha=8)).weights.export(tmp_path / "now", "policy")
    with pytest.raises(UserError, match="needs no mending"):
        mend(tmp_path / "now", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_stock_diffusers_finds_its_own_file_of_the_two(tmp_path: Path) -> None:
    stock = tiny_sd()
    stock.save_pretrained(tmp_path / "model")
    model = trained(tmp_path / "model", LoraConfig(rank=4, alpha=8))
    model.weights.export(tmp_path / "final", "policy")
    (tmp_path / "final" / STOCK).rename(tmp_path / "final" / "z")  # the order of a folder is anybody's guess
    (tmp_path / "final" / "z").rename(tmp_path / "final" / STOCK)
    (tmp_path / "final" / KOHYA).write_bytes(b"would not be read")
    stock.load_lora_weights(tmp_path / "final", adapter_name="policy")
    for layer, delta in our_deltas(model).items():
        assert torch.equal(stock.unet.get_submodule(layer).get_delta_weight("policy").flatten(1), delta)


def test_stock_diffusers_reads_patterns_as_they_are_trained(tmp_path: Path) -> None:
    stock = tiny_sana()
    stock.save_pretrained(tmp_path / "model")
    model = trained(tmp_path / "model", SETTINGS_OF_RUNS[1])
    model.weights.export(tmp_path / "final", "policy")
    stock.load_lora_weights(tmp_path / "final", adapter_name="policy")
    for layer, delta in our_deltas(model).items():
        module = stock.transformer.get_submodule(layer)
        assert (module.r["policy"], module.scaling["policy"]) == (2 if layer.endswith("to_q") else 4, 1.0)
        torch.testing.assert_close(module.get_delta_weight("policy").flatten(1), delta, rtol=1e-5, atol=1e-7)


def test_metadata_says_what_the_adapter_is_and_nothing_of_versions(tmp_path: Path) -> None:
    tiny_sd3().save_pretrained(tmp_path / "model")
    trained(tmp_path / "model", LoraConfig(rank=4, alpha=8, target_modules=("to_v", "to_k"))).weights.export(
        tmp_path, "policy"
    )
    with safe_open(tmp_path / STOCK, "pt") as file:
        told = json.loads(file.metadata()[SETTINGS])
    assert told == {
        "transformer.r": 4,
        "transformer.lora_alpha": 4,
        "transformer.rank_pattern": {},
        "transformer.alpha_pattern": {},
        "transformer.target_modules": ["to_k", "to_v"],
    }


@pytest.mark.parametrize(
    ("width", "metadata"),
    [
        (768, {"ss_base_model_version": "sd_v1"}),
        (1024, {"ss_base_model_version": "sd_v2", "ss_v2": "True"}),
        (2048, {"ss_base_model_version": "sdxl_base_v1-0"}),
        (16, {}),
    ],
)
def test_a1111_is_told_the_base_model(width: int, metadata: dict[str, str]) -> None:
    """It lists a LoRA under the version it finds: sdxl_... is XL, ss_v2 is 2, any other metadata is 1."""
    assert kohya_metadata({"mid.attn2.to_k.lora_A.weight": torch.ones(4, width)}) == metadata
    assert kohya_metadata({"mid.attn1.to_k.lora_A.weight": torch.ones(4, width)}) == {}


EXPORT = """
import sys
from dgpo.models import LoraConfig, load_model
for name in ("sd", "pixart"):
    model = load_model(f"{sys.argv[1]}/{name}", device="cpu", sets=(), lora=LoraConfig(rank=4, alpha=8))
    model.weights.export(f"{sys.argv[2]}/{name}", "policy")
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_that_others_may_read(tmp_path: Path) -> None:
    """U-Nets and PEFT folders: the most files there are."""
    tiny_sd().save_pretrained(tmp_path / "sd")
    tiny_pixart().save_pretrained(tmp_path / "pixart")
    for name in ("one", "two"):
        subprocess.run(
            [sys.executable, "-c", EXPORT, tmp_path, tmp_path / name], check=True, capture_output=True, umask=0o022
        )
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert [file.name for file in files] == [PEFT_CONFIG, PEFT, KOHYA, STOCK]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        assert (tmp_path / "one" / file).stat().st_mode & 0o777 == 0o644
