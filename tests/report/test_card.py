"""The model card says what the weights are, what they scored and how stock diffusers loads them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from parity import our_images
from PIL import Image
from runs import run, small, tensors
from torch import Tensor

from dgpo import Optimizer, Sampling, load_model
from dgpo.report import StockUse, write_card


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
    assert 'unet = AutoModel.from_pretrained(".", subfolder="unet")' in text
    assert "load_lora_weights" not in text


def test_it_says_which_program_reads_which_file(folder: Path) -> None:
    text = card_of(folder).text
    assert "| `pytorch_lora_weights.safetensors` | diffusers; ComfyUI, for SD3" in text
    assert "kohya_lora_weights" not in text
    (folder / "final" / "kohya_lora_weights.safetensors").touch()
    assert "| `kohya_lora_weights.safetensors` | ComfyUI and stable-diffusion-webui (A1111)" in card_of(folder).text
    (folder / "final" / "adapter_model.safetensors").touch()
    text = card_of(folder).text
    assert 'PeftModel.from_pretrained(pipe.transformer, ".")' in text
    assert "load_lora_weights" not in text


def test_it_calms_about_the_warnings_that_its_code_brings(folder: Path) -> None:
    keys, vae = "missing LoRA keys for text encoders", "the type of `vae`"
    text = card_of(folder).text
    assert keys in text
    assert vae not in text
    change_config(folder, model="tiny-sd3")
    text = card_of(folder).text
    assert keys in text
    assert vae in text
    change_config(folder, model="tiny-sd3", finetune="full")
    text = card_of(folder).text
    assert keys not in text
    assert vae in text


def code_of(text: str) -> str:
    """Its only Python."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "README.md", "exec")
    return code


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("model", ["tiny-sd3", "base"])
def test_its_code_draws_in_a_fresh_process_what_the_trained_weights_draw(
    model: str, finetune: Any, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "base")
    sampling = Sampling(num_inference_steps=3, eval_num_inference_steps=4, eval_guidance_scale=3.0)
    shown: Any = {"eval_prompts": {"own": "prompts.txt"}, "eval_every": 1, "num_samples": 1, "sampling": sampling}
    Path("prompts.txt").write_text('a "red" cat\n', encoding="utf-8")
    config = small(Path(model), Path("run"), iterations=1, finetune=finetune, optimizer=Optimizer(lr=3e-2), **shown)
    run(config)
    final = tmp_path / "run" / "final"
    code = code_of((final / "README.md").read_text(encoding="utf-8"))
    assert ("dgpo" in code) == (model == "tiny-sd3")
    done = subprocess.run([sys.executable, "-c", code], cwd=final, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    picture = read_picture(final / "picture.png")

    trained: Any = load_model(model, finetune=finetune, lora=config.lora, device="cpu")
    noise = torch.randn(1, *trained.latent_shape, generator=torch.Generator().manual_seed(0))
    (before,) = our_images(trained, noise, 4, 3.0, ['a "red" cat'])
    ema = {key.removeprefix("ema."): t for key, t in tensors(Path("run"), 1).items() if key.startswith("ema.")}
    trained.weights.load("policy", ema)
    (after,) = our_images(trained, noise, 4, 3.0, ['a "red" cat'])
    assert (picture - after).abs().max() < 1.5 / 255, "rounded to 8 bits"
    assert (picture - before).abs().max() > 8 / 255, "training has changed it"


def read_picture(path: Path) -> Tensor:
    """(3, H, W) in [0, 1]."""
    with Image.open(path) as image:
        return torch.tensor(image.getdata()).T.reshape(3, *image.size[::-1]) / 255


def test_the_code_for_a_model_of_the_hub_is_ordinary_diffusers_code(folder: Path) -> None:
    change_config(folder, model="stabilityai/stable-diffusion-3.5-medium", dtype="bf16", push_to_hub="me/red-cats")
    use = StockUse((), {"num_inference_steps": 40, "guidance_scale": 4.5, "negative_prompt": "", "height": 512})
    text = write_card(folder, folder / "final", use).read_text(encoding="utf-8")
    assert (
        code_of(text)
        == """import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(
    "stabilityai/stable-diffusion-3.5-medium",
    torch_dtype=torch.bfloat16,
)
pipe.load_lora_weights("me/red-cats")
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
image = pipe(
    "a red cat",
    num_inference_steps=40,
    guidance_scale=4.5,
    negative_prompt="",
    height=512,
    generator=torch.manual_seed(0),
).images[0]
image.save("picture.png")
"""
    )
    assert "working folder" not in text


def test_whoever_reads_it_on_the_hub_is_not_told_a_folder_of_this_machine(
    folder: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    change_config(folder, model=tiny_folder.name)
    here = code_of(card_of(folder).text)
    change_config(folder, push_to_hub="me/red-cats")
    there = code_of(card_of(folder).text)
    assert f'"{tiny_folder}"' in here
    assert str(tiny_folder.parent) not in there


def test_a_model_that_was_given_as_an_object_is_not_loaded(folder: Path) -> None:
    change_config(folder, model="")
    text = card_of(folder).text
    assert "A LoRA for a model that was given as an object, trained" in text
    assert "```python" not in text


def test_its_words_are_those_of_the_report(folder: Path) -> None:
    """What trained it is named once, a reward of weight 1 without it, and drift as what it is."""
    text = card_of(folder).text
    assert "trained online with dgpo, by its algorithm `dgpo`, for 2 iterations" in text
    assert "on the reward runs:colour." in text
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ") and " on " in line]
    assert rows == [
        [" runs:colour on seen ", " trained "],
        [" runs:colour on unseen ", " trained "],
        [" drift on seen ", " the base model's loss on the pictures "],
        [" drift on unseen ", " the base model's loss on the pictures "],
    ]
    assert "which is not looked up: `--license NAME` puts it in the place of `other`" in text
    change_config(folder, model="tiny-sd3")
    assert card_of(folder).data.license == "apache-2.0", "of a model inside this package it is known"
    assert "not looked up" not in card_of(folder).text
    change_config(folder, license="apache-2.0", offline="groups", rewards={"runs:colour": 0.5})
    text = card_of(folder).text
    assert "not looked up" not in text
    assert "trained offline with dgpo" in text
    assert "on the reward 0.5 runs:colour." in text
