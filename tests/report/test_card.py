"""The model card says what the weights are, what they scored and how stock diffusers loads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from dgpo.report import write_card


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    return run


def card_of(run: Path) -> ModelCard:
    return ModelCard.load(write_card(run, run / "final"))


def change_config(run: Path, **changes: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))


@pytest.mark.slow
def test_every_run_leaves_a_card_that_hugging_face_can_read(finished_run: Path) -> None:
    card = ModelCard.load(finished_run / "final" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == (
        "diffusers",
        "text-to-image",
        "other",
    )
    assert {"dgpo", "lora"} <= set(card.data.tags)
    assert "load_lora_weights" in card.text
    assert "runs:colour" in card.text
    assert Image.open(finished_run / "final" / "curve.png").size[0] > 100
    assert Image.open(finished_run / "final" / "samples.png").size[0] > 60


def test_scores_before_and_after_settings_and_versions_are_told(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[0]["eval/seen/reward"], rows[-1]["eval/seen/reward"] = 1.25, 2.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = card_of(folder).text
    assert any(line.split("|")[3:5] == [" 1.25 ", " 2.50 "] for line in text.splitlines() if "reward" in line.lower())
    assert "num_groups: 2" in text
    assert "diffusers: " in text
    assert str(folder) not in text.replace(str(yaml.safe_load((folder / "config.yaml").read_text())["model"]), "")


def test_the_base_model_is_named_where_it_is_an_id(folder: Path) -> None:
    assert card_of(folder).data.get("base_model") is None
    change_config(folder, model="stabilityai/stable-diffusion-3.5-medium", license="apache-2.0")
    card = card_of(folder)
    assert (card.data.base_model, card.data.license) == ("stabilityai/stable-diffusion-3.5-medium", "apache-2.0")
    assert card.data.base_model_relation == "adapter"


def test_a_whole_network_is_loaded_as_such(folder: Path) -> None:
    (folder / "final" / "unet").mkdir()
    change_config(folder, finetune="full")
    text = card_of(folder).text
    assert 'unet = AutoModel.from_pretrained("PATH OR ID OF THIS FOLDER", subfolder="unet")' in text
    assert "load_lora_weights" not in text


def test_it_says_which_program_reads_which_file(folder: Path) -> None:
    text = card_of(folder).text
    assert "| `pytorch_lora_weights.safetensors` | diffusers; ComfyUI, for SD3" in text
    assert "kohya_lora_weights" not in text
    (folder / "final" / "kohya_lora_weights.safetensors").touch()
    assert "| `kohya_lora_weights.safetensors` | ComfyUI and stable-diffusion-webui (A1111)" in card_of(folder).text
    (folder / "final" / "adapter_model.safetensors").touch()
    text = card_of(folder).text
    assert 'PeftModel.from_pretrained(pipe.transformer, "PATH OR ID OF THIS FOLDER")' in text
    assert "load_lora_weights" not in text
