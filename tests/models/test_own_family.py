"""The family of docs/models.md, of a pipeline that is not in the table: by name in every command, and its pictures."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from parity import PROMPTS, assert_same_pictures, generators, our_images
from runs import REWARDS, run, small
from tiny import _enliven
from tiny_flux import _t5, _t5_tokenizer
from tiny_vp import _vae

import dgpo
from dgpo import UserError
from dgpo.commands.main import main
from dgpo.config import load_yaml, save_yaml
from dgpo.models.pipeline import Family
from dgpo.models.sd3 import SD3

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def stock() -> AuraFlowPipeline:
    """A tiny random AuraFlow; T5 stands in for UMT5, which the pipeline asks in the same way."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        )
        pipeline = AuraFlowPipeline(
            tokenizer=_t5_tokenizer(),
            text_encoder=_t5(),
            vae=_vae(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
        _enliven(transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(stock: AuraFlowPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("auraflow")
    stock.save_pretrained(path)
    return path


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the code of the docs as my_family.py, as a user's does."""
    code = next(code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "AuraFlow" in code)
    assert len(code.splitlines()) < 36
    (tmp_path / "my_family.py").write_text(code)
    monkeypatch.delitem(sys.modules, "my_family", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
def test_it_draws_the_pictures_of_the_stock_call(
    stock: AuraFlowPipeline, folder: Path, working_folder: Path, guidance_scale: float
) -> None:
    model = dgpo.load_model(folder, family="my_family:AuraFlow", device="cpu", sets=(), max_sequence_length=32)
    noise = model.init_noise(generators())
    ours = our_images(model, noise, 4, guidance_scale, PROMPTS)
    expected = stock(
        PROMPTS,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        max_sequence_length=32,
        output_type="pt",
    ).images
    assert_same_pictures(ours, expected, (3, 3, 64, 64))
    assert model.latent_shape == (4, 8, 8)
    other: Any = model
    assert other.at_resolution(32).latent_shape == (4, 4, 4)


def test_plan_dry_run_training_and_evaluation_know_it_by_name(
    folder: Path, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(folder, working_folder / "run", family="my_family:AuraFlow", iterations=1, max_sequence_length=32)
    (working_folder / "prompts.txt").write_text("a red cat\na green cat\n")
    config = replace(config, rewards={"runs:colour": 1.0}, eval_prompts={"seen": "prompts.txt"})
    save_yaml(config, working_folder / "mine.yaml")
    assert main(["plan", "mine.yaml"]) == 0
    assert "the peak" in capsys.readouterr().out
    assert main(["train", "mine.yaml", "--dry-run"]) == 0
    run(config, reward_functions={})
    assert load_yaml("run/config.yaml").family == "my_family:AuraFlow"
    assert run(replace(config, iterations=2), resume=True, reward_functions={}).iterations == 2
    assert main(["eval", "run"]) == 0
    exported = dgpo.load_model(folder, family="my_family:AuraFlow", lora=dgpo.LoraConfig(start="run/final"), sets=())
    assert any(float(t.abs().sum()) for key, t in exported.weights.tensors("policy").items() if "lora_B" in key)


class Unfinished(Family):
    def encode(self, prompts):
        return None


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("auraflow", "family='auraflow' is unknown: give package.module:Class"),
        ("my_family:Nothing", "module my_family has no 'Nothing'"),
        ("no_such_package:X", "there is no module no_such_package here"),
        ("runs:colour", "family='runs:colour' is no class that derives from dgpo.models.pipeline.Family"),
        (Unfinished, "has no __init__, predict, shift, which every family must write"),
    ],
)
def test_what_is_no_family_is_told_before_anything_is_loaded(folder, working_folder, family, message) -> None:
    with pytest.raises(UserError, match=message):
        dgpo.load_model(folder, family=family)


def test_a_family_that_does_not_fit_the_pipeline_is_one_message(folder: Path) -> None:
    with pytest.raises(UserError, match="lacks what a SD3 needs"):
        dgpo.load_model(folder, family=SD3, device="cpu")


def test_the_pipeline_alone_is_told_what_it_needs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a AuraFlowPipeline; .*family=package\.module:Class"):
        dgpo.train(small(folder, tmp_path / "run"), reward_functions=REWARDS)
    assert not (tmp_path / "run").exists()
