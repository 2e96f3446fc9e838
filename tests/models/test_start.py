"""A LoRA that stock diffusers reads is where training goes on, exactly as strong as diffusers draws it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import PROMPTS, generators
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from runs import run, small
from safetensors.torch import load_file, save_file
from tiny import tiny_sd3
from tiny_flux import tiny_flux
from tiny_qwen_image import tiny_qwen_image
from tiny_vp import tiny_pixart, tiny_sd, tiny_sdxl
from tiny_z_image import tiny_z_image

from dgpo.config import Config, LoraConfig, load_yaml
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.lora import KOHYA, PEFT, PEFT_CONFIG, SETTINGS, STOCK
from dgpo.models.start import choose_file
from dgpo.plan.skeleton import skeleton

SETTINGS_OF_FILE = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def trained(load, tmp_path_factory):
    """A LoRA folder, and the velocities of the model that wrote it."""
    model = load(lora=SETTINGS_OF_FILE)
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


@pytest.mark.parametrize("file", ["", STOCK])
def test_every_set_but_the_reference_starts_from_it(load, trained, file):
    folder, expected = trained
    model = load(lora=LoraConfig(start=str(folder / file)))
    for name in ("policy", "old", "ema"):
        assert torch.equal(velocity(model, name), expected)
    assert torch.equal(velocity(model, "ref"), velocity(load(lora=SETTINGS_OF_FILE)))
    assert [p.requires_grad for p in model.weights.parameters()] == [True] * len(model.weights.parameters())
    assert (model.lora.rank, model.lora.alpha) == (4, 4), "of the file, where the scale is in B"


@pytest.mark.parametrize("alpha", [2, 8, 64])
def test_another_alpha_changes_how_it_trains_and_not_what_it_draws(load, trained, alpha):
    folder, expected = trained
    model = load(lora=LoraConfig(start=str(folder), alpha=alpha))
    assert model.lora.alpha == alpha
    assert model.network.transformer_blocks[0].attn.to_q.scaling["policy"] == alpha / 4
    assert torch.equal(velocity(model), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 8}, r"has rank 4; the config says lora.rank=8. Leave lora.rank out"),
        ({"target_modules": ("to_q",)}, r"does not fit this model: .* tensors do not fit"),
    ],
)
def test_other_settings_are_told(load, trained, changes, message):
    with pytest.raises(UserError, match=message):
        load(lora=replace(SETTINGS_OF_FILE, start=str(trained[0]), **changes))


def test_what_is_no_lora_is_refused(load, tmp_path):
    with pytest.raises(UserError, match="there is no such folder or file"):
        load(lora=replace(SETTINGS_OF_FILE, start=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="holds no safetensors file"):
        load(lora=replace(SETTINGS_OF_FILE, start=str(tmp_path)))
    (tmp_path / STOCK).write_bytes(b"x" * 30)
    with pytest.raises(UserError, match="cannot be read as a LoRA"):
        load(lora=replace(SETTINGS_OF_FILE, start=str(tmp_path)))
    with pytest.raises(UserError, match=r"continues a LoRA, and finetune='full' trains none"):
        Config(finetune="full", lora=replace(SETTINGS_OF_FILE, start="somewhere"))


def drawn(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names and shapes, other values."""
    return {
        k: 0.2 * torch.randn(t.shape, generator=torch.Generator().manual_seed(i))
        for i, (k, t) in enumerate(tensors.items())
    }


def adapter(
    pipeline: Any, network: str = "transformer", targets: tuple[str, ...] = ("to_q", "to_v"), **settings: Any
) -> Any:
    """{LAYER.lora_A.weight: tensor} of an adapter that PEFT makes for the network, and its settings."""
    config = PeftConfig(r=4, target_modules=list(targets), **settings)
    model = get_peft_model(getattr(pipeline, network), config)
    keys = [k for k in model.state_dict() if "lora_" in k]
    tensors = {k.removeprefix("base_model.model.").replace(".default.", "."): model.state_dict()[k] for k in keys}
    return drawn(tensors), config


def stock_file(folder: Path, tensors: Any, settings: Any = None, prefix: str = "transformer.") -> Path:
    told = settings and {f"{prefix}{key}": settings[key] for key in sorted(settings)}
    folder.mkdir()
    metadata = {SETTINGS: json.dumps(told)} if told else None
    save_file({f"{prefix}{key}": tensor for key, tensor in tensors.items()}, folder / STOCK, metadata)
    return folder


def sd3_rslora(folder: Path) -> Any:
    tensors, _ = adapter(tiny_sd3())
    settings = {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["to_q", "to_v"]}
    return tiny_sd3, stock_file(folder, tensors, settings)


def sd3_patterns(folder: Path) -> Any:
    patterns = {"alpha_pattern": {"attn2.to_q": 32}, "rank_pattern": {"attn.to_v": 2}}
    tensors, _ = adapter(tiny_sd3(), lora_alpha=8, **patterns)
    return tiny_sd3, stock_file(
        folder, tensors, {"r": 4, "lora_alpha": 8, "target_modules": ["to_q", "to_v"], **patterns}
    )


def sd3_single_layer(folder: Path) -> Any:
    tensors, _ = adapter(tiny_sd3(), targets=("transformer_blocks.1.attn.to_q", "norm1.linear"))
    return tiny_sd3, stock_file(folder, tensors)


def flux_with_alpha_tensors(folder: Path) -> Any:
    tensors, _ = adapter(tiny_flux())
    alphas = {f"{key.partition('.lora_A')[0]}.alpha": torch.tensor(16.0) for key in tensors if ".lora_A." in key}
    return tiny_flux, stock_file(folder, {**tensors, **alphas})


def kohya(folder: Path, make: Any) -> Any:
    tensors, _ = adapter(make(), "unet", ("to_q", "to_out.0"))
    named: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.removesuffix(".weight").rpartition(".lora_")
        name = f"lora_unet_{layer.replace('.', '_')}"
        named |= {f"{name}.lora_{'down' if part == 'A' else 'up'}.weight": tensor, f"{name}.alpha": torch.tensor(1.0)}
    folder.mkdir()
    save_file(named, folder / "style.safetensors")
    return make, folder


def with_diffusion_model_prefix(folder: Path, make: Any) -> Any:
    return make, stock_file(folder, adapter(make())[0], prefix="diffusion_model.")


def peft_folder(folder: Path, make: Any) -> Any:
    tensors, config = adapter(make(), lora_alpha=12, use_rslora=True)
    config.save_pretrained(str(folder))
    save_file({f"base_model.model.{key}": tensor for key, tensor in tensors.items()}, folder / PEFT)
    return make, folder


FILES: dict[str, Any] = {
    "sd3, rslora": sd3_rslora,
    "sd3, patterns": sd3_patterns,
    "sd3, two layers": sd3_single_layer,
    "flux, alpha tensors": flux_with_alpha_tensors,
    "sd, kohya": lambda folder: kohya(folder, tiny_sd),
    "sdxl, kohya": lambda folder: kohya(folder, tiny_sdxl),
    "qwen, diffusion_model": lambda folder: with_diffusion_model_prefix(folder, tiny_qwen_image),
    "z-image, diffusion_model": lambda folder: with_diffusion_model_prefix(folder, tiny_z_image),
    "pixart, peft": lambda folder: peft_folder(folder, tiny_pixart),
    "sd3, peft": lambda folder: peft_folder(folder, tiny_sd3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_it_is_as_strong_as_in_stock_diffusers_and_so_is_what_is_exported_next(name, tmp_path):
    make, start = FILES[name](tmp_path / "start")
    stock, again = make(), make()
    stock.save_pretrained(tmp_path / "model")
    expected = deltas_in_stock(stock, start)
    assert min(delta.abs().max() for delta in expected.values()) > 0.01
    model: Any = load_model(
        tmp_path / "model", device="cpu", sets=("ref", "ema"), resolution=64, lora=LoraConfig(start=str(start))
    )
    for weights in ("policy", "ema"):
        assert_same(deltas(model.network, weights), expected)
    model.weights.export(tmp_path / "next", "ema")
    assert_same(deltas_in_stock(again, tmp_path / "next"), expected)
    # what the run's config then says makes the same adapters without looking at the file
    plain = load_model(tmp_path / "model", device="cpu", sets=(), resolution=64, lora=replace(model.lora, start=None))
    assert {k: t.shape for k, t in plain.weights.tensors("policy").items()} == {
        k: t.shape for k, t in model.weights.tensors("policy").items()
    }
    assert scales(plain) == scales(model)


def deltas_in_stock(pipeline: Any, folder: Path) -> dict[str, torch.Tensor]:
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    if (folder / PEFT).is_file():
        network = PeftModel.from_pretrained(network, str(folder)).base_model.model
        return deltas(network, "default")
    pipeline.load_lora_weights(folder, adapter_name="stock")
    return deltas(network, "stock")


def deltas(network: Any, name: str) -> dict[str, torch.Tensor]:
    layers = {layer: module for layer, module in network.named_modules() if hasattr(module, "get_delta_weight")}
    return {layer: module.get_delta_weight(name).detach() for layer, module in layers.items()}


def scales(model: Any) -> dict[str, float]:
    return {name: m.scaling["policy"] for name, m in model.network.named_modules() if hasattr(m, "scaling")}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for layer, delta in expected.items():
        torch.testing.assert_close(found[layer], delta, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope="module")
def sd3_file(tmp_path_factory):
    """Ranks and alphas of their own for some layers."""
    return sd3_patterns(tmp_path_factory.mktemp("patterns") / "lora")[1]


def test_names_in_the_config_are_short_and_patterns_are_kept(load, sd3_file):
    lora = load(lora=LoraConfig(start=str(sd3_file)), sets=()).lora
    assert lora.target_modules == ("to_q", "to_v")
    assert (lora.rank, lora.alpha) == (4, 8)
    assert lora.rank_pattern == {f"^transformer_blocks.{i}.attn.to_v": 2 for i in (0, 1)}
    assert lora.alpha_pattern == {"^transformer_blocks.0.attn2.to_q": 32}


@pytest.mark.slow
def test_a_run_records_what_the_file_told_and_resumes_after_the_file_has_changed(tiny_folder, trained, tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    (start / STOCK).write_bytes((trained[0] / STOCK).read_bytes())
    lora = LoraConfig(start=str(start))
    config = small(tiny_folder, tmp_path / "run", iterations=1, lora=lora)
    run(config)
    stored = load_yaml(tmp_path / "run" / "config.yaml").lora
    assert (stored.rank, stored.alpha, stored.start) == (4, 4, str(start))
    tensors, metadata = load_file(start / STOCK), {"transformer.r": 4, "transformer.lora_alpha": 64}
    metadata["transformer.target_modules"] = list(stored.target_modules or ())  # the same file at another strength
    save_file(tensors, start / STOCK, {SETTINGS: json.dumps(metadata)})
    run(replace(config, iterations=2), resume=True)
    assert load_yaml(tmp_path / "run" / "config.yaml").lora == stored


def test_a_plan_counts_the_ranks_of_the_file(folder, sd3_file, load):
    config = Config(model=str(folder), prompts=("a",), rewards={"colour": 1.0}, lora=LoraConfig(start=str(sd3_file)))
    planned = skeleton(config, folder)
    loaded = load(lora=config.lora, sets=())
    assert planned.lora == loaded.lora
    assert sum(p.numel() for p in planned.weights.parameters()) == sum(p.numel() for p in loaded.weights.parameters())


def test_a_folder_with_two_loras_asks_which(load, trained, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes((trained[0] / STOCK).read_bytes())
    with pytest.raises(UserError, match=r"several files, one.safetensors, two.safetensors; give one of them: .*one"):
        load(lora=LoraConfig(start=str(tmp_path)))
    one = tmp_path / "one.safetensors"
    assert torch.equal(velocity(load(lora=LoraConfig(start=str(one)))), trained[1])
    one.rename(tmp_path / STOCK)
    (tmp_path / "two.safetensors").rename(tmp_path / KOHYA)
    assert choose_file(str(tmp_path)) == str(tmp_path / STOCK), "an export's second file is the same LoRA"


def test_a_repository_on_the_hub_is_asked_like_a_folder(monkeypatch):
    names = ["README.md", "a.safetensors", "sub/c.safetensors"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda source: names)
    assert choose_file("owner/style") == "a.safetensors"
    names.append("b.safetensors")
    with pytest.raises(UserError, match=r"several files, a.safetensors, b.safetensors; give one of them: the file"):
        choose_file("owner/style")

    def fail(source):
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.list_repo_files", fail)
    with pytest.raises(UserError, match="the hub does not say what it holds"):
        choose_file("owner/style")


def broken(name: str, tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    first = next(iter(tensors))
    if name == "text encoder":
        return stock_file(folder, {**tensors, "text_encoder.x.lora_A.weight": torch.ones(4, 4)}, prefix="")
    if name == "other names":
        return stock_file(folder, tensors, prefix="lora_transformer_")
    if name == "other model":
        return stock_file(folder, {**tensors, "transformer_blocks.7.attn.to_q.lora_A.weight": tensors[first].clone()})
    if name == "shapes":
        return stock_file(folder, {key: tensor.repeat(1, 2) for key, tensor in tensors.items()})
    if name == "dora":
        magnitude = {
            k.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(16) for k in tensors if "lora_A" in k
        }
        return stock_file(folder, {**tensors, **magnitude})
    if name == "alpha 0":
        return stock_file(folder, tensors, {"r": 4, "lora_alpha": 0, "target_modules": ["to_q", "to_v"]})
    folder.mkdir()
    save_file({f"base_model.model.{key}": tensor for key, tensor in tensors.items()}, folder / PEFT)
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text encoder", "holds adapters of text_encoder.* only those of the transformer"),
        ("other names", "holds no adapter of a SD3Transformer2DModel under a name that diffusers knows"),
        ("other model", "has 7 layers, and 6 of them fit this transformer"),
        ("shapes", "cannot be read as a LoRA"),
        ("dora", "is no plain LoRA"),
        ("alpha 0", "has alpha 0 at .*; it must be above 0"),
        ("peft without settings", f"there is no {PEFT_CONFIG}, which tells its scale"),
    ],
)
def test_what_would_be_loaded_in_part_is_refused(load, tmp_path, name, message):
    tensors, _ = adapter(tiny_sd3())
    if name == "text encoder":
        tensors = {f"transformer.{key}": tensor for key, tensor in tensors.items()}
    start = broken(name, tensors, tmp_path / "start")
    with pytest.raises(UserError, match=message):
        load(lora=LoraConfig(start=str(start)))
