"""A model is counted from its configuration files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from medium import short  # pyright: ignore[reportMissingImports] (beside this file)
from tiny import tiny_sd3  # pyright: ignore[reportMissingImports] (tests/models)
from tiny_flux import tiny_flux  # pyright: ignore[reportMissingImports]
from tiny_qwen_image import tiny_qwen_image  # pyright: ignore[reportMissingImports]
from tiny_sana import tiny_sana  # pyright: ignore[reportMissingImports]
from tiny_vp import tiny_pixart, tiny_sd, tiny_sdxl  # pyright: ignore[reportMissingImports]
from tiny_z_image import tiny_z_image  # pyright: ignore[reportMissingImports]
from torch import nn

from dgpo import LoraConfig
from dgpo.errors import UserError
from dgpo.plan.checks import run_checks
from dgpo.plan.estimates import estimate
from dgpo.plan.gpus import find_gpu
from dgpo.plan.meta import MetaModel
from dgpo.plan.skeleton import find, skeleton
from dgpo.plan.stand_ins import LongestText
from dgpo.training.setup import load


@pytest.fixture
def bare(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny pipeline without its weights."""
    return shutil.copytree(tiny_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"finetune": "full"},
        {"lora": LoraConfig(rank=3, alpha=3, target_modules=("to_q", "proj_out")), "dtype": "bf16"},
    ],
)
def test_parameters_are_those_of_the_loaded_model(
    changes: dict[str, Any], tiny_folder: Path, bare: Path, tmp_path: Path
) -> None:
    real: Any = load(short(tiny_folder, tmp_path, **changes), torch.device("cpu"))
    ours = skeleton(short(bare, tmp_path, **changes), bare)
    assert ours.weights.names == real.weights.names
    for name in real.weights.names:
        assert shapes(ours.weights.tensors(name)) == shapes(real.weights.tensors(name))
    for name, part in real.pipeline.components.items():
        if isinstance(part, nn.Module):
            assert shapes(ours.pipeline.components[name].state_dict()) == shapes(part.state_dict())
    assert all(p.is_meta for p in ours.network.parameters())
    assert ours.latent_shape == real.latent_shape


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (*tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def test_conditioning_has_the_shapes_of_the_real_one_with_and_without_a_vocabulary(
    tiny_folder: Path, bare: Path, tmp_path: Path
) -> None:
    real = load(short(tiny_folder, tmp_path), torch.device("cpu")).encode(["a red cat"])
    for tokenizer in ("tokenizer", "tokenizer_2"):  # what a copy without merges.txt has
        (bare / tokenizer / "tokenizer.json").unlink()
    for folder in (tiny_folder, bare):
        model = MetaModel(skeleton(short(folder, tmp_path), folder), "cpu")
        with model.counted() as count:
            ours = model.encode(["a red cat"])
        assert shapes(ours.tensors) == shapes(real.tensors)
        assert count.flops > 0
    assert isinstance(model.model.pipeline.tokenizer, LongestText)


def test_the_longest_text_is_as_long_as_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    clip = LongestText(tmp_path)
    assert clip(["a", "b"]).input_ids.shape == (2, 77)
    assert clip("a", max_length=512).attention_mask.sum() == 512  # a pipeline that asks for more gets it
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert LongestText(tmp_path)("a").input_ids.shape == (1, 512)
    assert len(LongestText(tmp_path / "none").encode("twelve chars")) == 3


def cached(cache: Path, model: Path, name: str) -> None:
    """Put a pipeline's files where the hub's client would."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0123")
    shutil.copytree(model, home / "snapshots" / "0123")


def test_an_id_is_looked_up_in_the_local_cache_only(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", None)
    assert find("owner/name") is None
    unknown = estimate(short(Path("owner/name"), tmp_path), 1, True, "a cat")
    for pattern in ("*.json", "*.txt", "*.model"):
        assert f'--include "{pattern}"' in unknown.unknown
    assert "hf download owner/name --include" in unknown.unknown
    assert (unknown.geometry.images, unknown.peak, unknown.parts) == (6, None, [])
    cached(tmp_path / "cache", bare, "owner/name")
    folder = find("owner/name")
    assert folder is not None
    assert skeleton(short(Path("owner/name"), tmp_path), folder).latent_shape == (4, 8, 8)


@pytest.mark.parametrize("part", ["transformer", "scheduler", "vae/config.json"])
def test_missing_files_are_named(part: str, bare: Path, tmp_path: Path) -> None:
    gone = bare / part
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=f"not all there.*{part.split('/')[0]}|{part.split('/')[0]}.*not all there"):
        skeleton(short(bare, tmp_path), bare)


def test_what_cannot_run_without_data_says_so_and_is_still_counted(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dgpo.models.sd3 import SD3

    def looks(self: SD3, x_t: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        return x_t * x_t.max().item()

    monkeypatch.setattr(SD3, "predict", looks)
    found = estimate(short(bare, tmp_path), 1, True, "a cat")
    assert found.unknown.startswith("SD3 cannot run without data: RuntimeError: Tensor.item()")
    assert found.peak is None
    assert found.trained > 0
    assert found.held is not None


def test_another_kind_of_pipeline_is_unknown(bare: Path, tmp_path: Path) -> None:
    index = json.loads((bare / "model_index.json").read_text())
    (bare / "model_index.json").write_text(json.dumps({**index, "_class_name": "KandinskyPipeline"}))
    assert "is a KandinskyPipeline; supported: " in estimate(short(bare, tmp_path), 1, True, "a cat").unknown


PIPELINES = {
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "qwen_image": tiny_qwen_image,
    "sana": tiny_sana,
    "sd15": tiny_sd,
    "sdxl": tiny_sdxl,
    "pixart": tiny_pixart,
    "z_image": tiny_z_image,
}
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")


@pytest.mark.slow
@pytest.mark.parametrize("family", PIPELINES)
def test_every_family_is_planned_without_its_tokenizers_files_and_says_so(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PIPELINES[family]().save_pretrained(tmp_path / "model")
    config = short(tmp_path / "model", tmp_path / "run", resolution=64, rewards={"crispness": 1.0})
    whole = estimate(config, 1, True, "a red cat")
    names = sorted(path.name for path in (tmp_path / "model").glob("tokenizer*"))
    for path in (tmp_path / "model").glob("tokenizer*/*"):
        if path.name in VOCABULARIES:
            path.unlink()
    (tmp_path / "model" / names[0] / "vocab.json").write_text("{}")  # without merges.txt it is of no use
    capsys.readouterr()
    bare = estimate(config, 1, True, "a red cat")
    assert (whole.unknown, whole.without_vocabulary) == ("", [])
    assert (bare.unknown, sorted(bare.without_vocabulary)) == ("", names)
    assert capsys.readouterr() == ("", "")
    assert whole.peak is not None
    assert bare.peak is not None
    assert bare.peak >= whole.peak  # text is as long as it may be
    checks = {check.text.split(":")[0]: check for check in run_checks(bare, find_gpu("L4"), False)}
    sizes = checks["sizes"]
    assert sizes.ok
    assert checks["prompts"].text.endswith("whether the model reads them to their ends is not known")
    assert f"for the files of {', '.join(bare.without_vocabulary)} are not all there; save the pipeline's" in sizes.text


def test_what_encodes_no_text_without_a_vocabulary_names_the_files_and_how_to_get_them(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in bare.glob("tokenizer*/tokenizer.json"):
        path.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delattr(LongestText, "__call__")
    cached(tmp_path / "cache", bare, "owner/name")
    found = estimate(short(Path("owner/name"), tmp_path), 1, True, "a cat")
    assert found.unknown.startswith(
        "the files of tokenizer, tokenizer_2 are not all there, and SD3 cannot encode text without them (TypeError"
    )
    assert found.unknown.endswith(
        'they come with: hf download owner/name --include "*.json" --include "*.txt" --include "*.model" '
        '--include "*.jinja"'
    )
    assert found.trained > 0


def test_a_side_that_the_network_cannot_tile_is_told_without_weights(bare: Path, tmp_path: Path) -> None:
    found = estimate(short(bare, tmp_path, resolution=72), 1, True, "a cat")
    assert found.unknown == "resolution=72 does not fit this model: it draws multiples of 16 pixels up to 128"
