"""A damaged pipeline ends in one message, and a genuine one is never refused. All files of all families:
benchmarks/damaged_models.py."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import cases, drawn, outcome
from safetensors.torch import load_file, save_file
from tiny import tiny_sd3
from tiny_flux import tiny_flux
from tiny_qwen_image import tiny_qwen_image
from tiny_sana import tiny_sana
from tiny_vp import tiny_pixart, tiny_sd, tiny_sdxl
from tiny_z_image import tiny_z_image
from torch import Tensor
from transformers import CLIPTokenizer

from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.models.folder import quiet, read_index, read_pipeline

PIPELINES: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (tiny_sd3, tiny_flux, tiny_qwen_image, tiny_z_image, tiny_sana, tiny_sd, tiny_sdxl, tiny_pixart)
}


def read(folder: Path) -> Any:
    with quiet():
        return read_pipeline(str(folder), read_index(str(folder)), {"default": torch.float32})


def change(path: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture(scope="module")
def whole(folder: Path) -> Tensor:
    return drawn(folder)


@pytest.mark.parametrize("file", ["text_encoder/model.safetensors", "transformer/config.json", "model_index.json"])
def test_damage_to_a_file_is_told_in_one_message(folder: Path, whole: Tensor, tmp_path: Path, file: str) -> None:
    for case in cases(folder):
        if case.file == file and (case.fault, file) != ("deleted", "model_index.json"):
            how, said = outcome(folder, case, tmp_path / "damaged", whole)
            assert how == "refused", (case, said)
            assert file.split("/")[0] in said, case
            assert "\n" not in said, case


@pytest.mark.slow
@pytest.mark.parametrize("family", PIPELINES)
def test_a_missing_tensor_of_any_part_is_named(tmp_path: Path, family: str) -> None:
    """The libraries only warn, and fill a text encoder with random weights."""
    PIPELINES[family]().save_pretrained(tmp_path)
    assert read(tmp_path), "whole, it is loaded"
    for path in sorted(tmp_path.glob("*/*.safetensors")):
        before = path.read_bytes()
        lost = sorted(key for key in load_file(path) if key.endswith(".weight") and key != "shared.weight")[-1]
        change(path, lambda tensors, lost=lost: tensors.pop(lost))
        with pytest.raises(UserError, match=rf"{path.parent.name} \(\w+\): its files lack 1 tensor \(\S*weight\)"):
            read(tmp_path)
        path.write_bytes(before)


def test_a_layer_that_config_json_leaves_out_is_no_silent_cut(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"its files hold 16 tensors \(\S+layers\.1\.\S+, .* has no place"):
        load_model(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_missing_tokenizer_file_is_named(folder: Path, tmp_path: Path, part: str, file: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / part / file).unlink()
    with pytest.raises(UserError, match=rf"{part} has no vocabulary|cannot read {part}/tokenizer_config\.json"):
        load_model(tmp_path)


def test_a_tokenizer_of_special_tokens_alone_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[]).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="knows no word, only 2 special tokens"):
        load_model(tmp_path)


def test_words_without_their_merges_are_refused(folder: Path, tmp_path: Path) -> None:
    """As published CLIP tokenizers have them, without tokenizer.json: each word would be read letter by letter."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    own = tmp_path / "tokenizer"
    model = json.loads((own / "tokenizer.json").read_text())["model"]
    (own / "vocab.json").write_text(json.dumps(model["vocab"]))
    (own / "merges.txt").write_text("#version: 0.2\n")
    (own / "tokenizer.json").unlink()
    assert torch.equal(drawn(tmp_path), drawn(folder))
    (own / "merges.txt").unlink()
    with pytest.raises(UserError, match="has no vocabulary"):
        load_model(tmp_path)


@pytest.mark.parametrize("template", ["", "{% for message in messages %}"])
def test_a_damaged_chat_template_is_told_at_loading(tmp_path: Path, template: str) -> None:
    tiny_z_image().save_pretrained(tmp_path)
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="chat template is missing or damaged"):
        load_model(tmp_path, resolution=64)


def test_shards_are_whole_or_refused(tmp_path: Path) -> None:
    pipeline = tiny_sd3()
    pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted((tmp_path / "transformer").glob("*-of-*.safetensors"))
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    assert len(shards) > 2
    assert read(tmp_path)
    for damage in (shards[1].unlink, lambda: _forget(index)):
        before = {path: path.read_bytes() for path in (shards[1], index)}
        damage()
        with pytest.raises(UserError, match="transformer"):
            read(tmp_path)
        for path, content in before.items():
            path.write_bytes(content)


def _forget(index: Path) -> None:
    """The index no longer names a tensor, though its shard has it."""
    values = json.loads(index.read_text())
    shard = sorted(set(values["weight_map"].values()))[1]
    values["weight_map"] = {key: file for key, file in values["weight_map"].items() if file != shard}
    index.write_text(json.dumps(values))


Extra = Callable[[dict[str, Tensor]], Any]


def tied(name: str, twin: str) -> Extra:
    """A tensor that is saved under two names."""
    return lambda tensors: tensors.update({twin: tensors[name].clone()})


def also(*names: str) -> Extra:
    return lambda tensors: tensors.update({name: torch.zeros(2, 3) for name in names})


def prefixed(prefix: str, *names: str) -> Extra:
    def edit(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[prefix + key] = tensors.pop(key)
        also(*names)(tensors)

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "part", "edit"),
    [
        (tiny_sd3, "text_encoder", also("text_model.embeddings.position_ids")),
        (tiny_sdxl, "text_encoder_2", also("text_model.embeddings.position_ids")),
        (tiny_sd, "text_encoder", also("text_model.embeddings.position_ids")),
        (tiny_sd, "text_encoder", also("vision_model.encoder.layers.0.mlp.fc1.weight", "logit_scale")),
        (tiny_flux, "text_encoder_2", tied("shared.weight", "encoder.embed_tokens.weight")),
        (tiny_pixart, "text_encoder", also("decoder.block.0.layer.0.SelfAttention.k.weight", "lm_head.weight")),
        (tiny_z_image, "text_encoder", prefixed("model.", "lm_head.weight")),
        (tiny_sana, "text_encoder", prefixed("model.", "lm_head.weight")),
        (tiny_qwen_image, "text_encoder", also("model.language_model.layers.0.self_attn.rotary_emb.inv_freq")),
    ],
)
def test_a_genuine_pipeline_is_not_refused(tmp_path: Path, make: Any, part: str, edit: Extra) -> None:
    """With the tensors that published files have beside those of the network, as older versions saved them."""
    make().save_pretrained(tmp_path)
    before = {key: tensor.clone() for key, tensor in read(tmp_path).components[part].state_dict().items()}
    change(tmp_path / part / "model.safetensors", edit)
    after = read(tmp_path).components[part].state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_only_looks_at_pictures_is_not_read(tmp_path: Path) -> None:
    """The safety checker of published Stable Diffusion: a gigabyte that is let go at once."""
    tiny_sd().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert load_model(tmp_path, device="cpu").pipeline.safety_checker is None


@pytest.mark.slow
def test_loading_says_nothing_and_leaves_logging_as_it_was(folder: Path) -> None:
    """Not even torchao, which PEFT imports and which warns of kernels for other machines."""
    code = f"from dgpo.models import load_model; load_model({str(folder)!r}, device='cpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before = logging.root.manager.disable
    load_model(folder, device="cpu")
    assert logging.root.manager.disable == before
