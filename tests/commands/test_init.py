"""`dgpo init` writes a config file that reads as the config it was made from, and says of each field what it is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo.algorithms.registry import known_algorithms, make_algorithm
from dgpo.commands.main import main
from dgpo.config import Config, Optimizer, load_yaml, to_dict
from dgpo.models import FAMILIES
from dgpo.recipes import RECIPES, VARIANTS, fitting, recipe
from dgpo.utils.docs import field_docs

FILE = "my_run.yaml"
PUBLISHED = {
    "stabilityai/stable-diffusion-3.5-medium": "StableDiffusion3Pipeline",
    "black-forest-labs/FLUX.1-dev": "FluxPipeline",
    "black-forest-labs/FLUX.2-klein-base-4B": "Flux2KleinPipeline",
    "Qwen/Qwen-Image": "QwenImagePipeline",
    "Tongyi-MAI/Z-Image": "ZImagePipeline",
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": "SanaPipeline",
    "stabilityai/stable-diffusion-xl-base-1.0": "StableDiffusionXLPipeline",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "StableDiffusionPipeline",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty at first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words: str) -> Config:
    """The config that the written file holds."""
    assert main(["init", FILE, *words]) == 0
    return load_yaml(FILE)


def origin() -> str:
    """Where the file says its values come from."""
    return Path(FILE).read_text().splitlines()[0].removeprefix("# A run of dgpo, with the values of ").split(".")[0]


@pytest.mark.parametrize("name", [*RECIPES, *(f"sd35m_ocr@{variant}" for variant in VARIANTS)])
def test_every_recipe_comes_back_whole(name: str, would_train: list[Config]) -> None:
    assert init("--recipe", name) == replace(recipe(name), name="my_run")
    assert origin() == f"the recipe {name}"
    assert main(["train", FILE]) == 130
    assert would_train == [load_yaml(FILE)]


@pytest.mark.parametrize("algorithm", known_algorithms())
def test_every_algorithm_comes_back_with_its_own_fields(algorithm: str) -> None:
    base, own = recipe("tiny"), make_algorithm(algorithm, {}, Config)
    if algorithm in ("dgpo", "diffusion_nft", "crd"):  # they train at more noise levels than the demo's rollouts have
        assert base.sampling.num_inference_steps == 6
        base = replace(base, sampling=replace(base.sampling, num_inference_steps=10))
    expected = replace(base, algorithm=own, name="my_run")
    assert init("--algorithm", algorithm) == expected
    kl = getattr(expected.algorithm, "kl_coef", None)
    assert yaml.safe_load(Path(FILE).read_text())["algorithm"].get("kl_coef") == kl


def test_any_field_may_be_given_and_a_full_training_has_no_lora() -> None:
    config = init(
        *("--iterations", "7", "--optimizer.lr", "1e-5", "--finetune", "full", "--name", "other", "--out", "runs/x")
    )
    expected = replace(recipe("tiny").optimizer, lr=1e-5)
    assert config == replace(
        recipe("tiny"), iterations=7, optimizer=expected, finetune="full", name="other", out="runs/x"
    )


def test_texts_that_yaml_would_read_otherwise_come_back() -> None:
    texts = ("yes", "a: b", "# no comment", "ein Stück", "1e3", "-", "x" * 300)
    assert init("--prompts", *texts).prompts == texts


def test_each_field_has_one_line_from_its_own_docstring() -> None:
    init()
    lines = Path(FILE).read_text().splitlines()
    body = lines[lines.index("") :]
    docs = field_docs(Config, 114) | field_docs(Optimizer, 114)
    comments = {line.partition(":")[0].strip(): before.strip() for before, line in pairwise(body) if ": " in line}
    told = {name: comment for name, comment in comments.items() if not name.startswith("#")}
    assert {"model", "prompts", "rewards", "iterations", "group_size", "num_groups", "resolution", "rank"} <= set(told)
    assert {"lr", "kl_coef", "num_inference_steps", "eval_every", "checkpoint_every", "out"} <= set(told)
    assert all(comment.startswith("# ") for comment in told.values())
    for name in ("model", "iterations", "resolution", "out", "lr"):
        assert told[name] == f"# {docs[name]}"
    assert docs["group_size"] == "Images per prompt; at least 2, for they are compared with each other."
    assert docs["dtype"].endswith("latents are fp32."), "whole sentences only, as many as a line takes"


def test_the_file_opens_with_the_commands_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "some where/my run.yaml"]) == 0
    text = Path("some where/my run.yaml").read_text()
    printed = capsys.readouterr().out
    for command in ("dgpo plan", "dgpo train"):
        assert f"#   {command} 'some where/my run.yaml'" in text
        assert f"  {command} 'some where/my run.yaml'\n" in printed
    assert "dgpo train 'some where/my run.yaml' --dry-run" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "tiny"),
        ("--model tiny-sd3", "tiny"),
        ("--model tiny-sd3-words", "words"),
        ("--model=stabilityai/stable-diffusion-3.5-medium --rewards pickscore", "sd35m_pickscore"),
        ("--model stabilityai/stable-diffusion-3.5-medium --rewards=geneval=2 --seed 1", "sd35m_geneval"),
        ("--rewards jpeg_compressibility=1 --model stabilityai/stable-diffusion-3.5-medium", "sd35m_ocr"),
        ("--model stabilityai/stable-diffusion-3.5-medium --recipe sd35l", "sd35l"),
        ("--model Qwen/Qwen-Image --rewards pickscore aesthetic", "qwen_image"),
    ],
)
def test_the_values_are_of_the_recipe_that_fits(words: str, expected: str) -> None:
    given = init(*words.split())
    assert origin() == f"the recipe {expected}"
    assert given.optimizer == recipe(expected).optimizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_on_this_machine_has_the_recipe_of_its_family(family: str) -> None:
    name = fitting("models/mine", family, {"pickscore"})
    assert (name is None) == (family == "PixArtSigmaPipeline")
    if name:
        assert PUBLISHED[recipe(name).model] == family


def test_a_model_without_a_recipe_has_the_defaults(tiny_folder: Path) -> None:
    words = ("--model", "me/my-model", "--rewards", "pickscore", "--prompts", "a cat", "a dog")
    expected = Config(name="my_run", model="me/my-model", rewards={"pickscore": 1.0}, prompts=("a cat", "a dog"))
    assert init(*words) == expected
    assert origin() == "the defaults"
    Path(FILE).unlink()
    given = init("--model", str(tiny_folder), "--rewards", "pickscore")
    assert (origin(), given.model) == ("the recipe sd35m_pickscore", str(tiny_folder))


def test_prompts_of_ones_own_are_evaluated() -> None:
    Path("my.txt").write_text("a cat\n")
    config = init("--prompts", "my.txt", "--rewards", "redness")
    assert to_dict(config)["eval_prompts"] == {"auto": "prompts"}
    above = Path(FILE).read_text().partition("\neval_prompts:")[0].splitlines()[-2:]
    assert above[0].startswith("# auto: a tenth of the prompts, 4 to 32, is held out of training and evaluated")
    assert "Others are added: {auto: prompts, NAME: SOURCE}" in above[1]
    assert config.eval_rewards == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model tiny-sd4", "there is no folder 'tiny-sd4'"),
        ("--model runs/none", "there is no folder 'runs/none'"),
        ("--rewards shaps", "unknown reward 'shaps'. Did you mean 'shapes'?"),
        ("--rewards my_rewards:warm", "there is no module my_rewards here"),
        ("--eval-rewards crispnes", "unknown reward 'crispnes'. Did you mean 'crispness'?"),
        ("--prompts none.txt", "cannot read the prompt file 'none.txt'"),
        ("--recipe tny", "there is no recipe 'tny'. Did you mean 'tiny'?"),
        ("--algorithm dpgo", "Did you mean 'dgpo'?"),
        ("--iteration 3", "unknown field 'iteration'. Did you mean 'iterations'?"),
        ("--group-size 1", "group_size=1 cannot work"),
        ("--model me/my-model --rewards pickscore", "prompts is empty"),
        ("tiny", "'tiny' has no place here"),
    ],
)
def test_mistakes_are_one_message_and_nothing_is_written(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "runs").mkdir()
    assert main(["init", "new/my_run.yaml", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_an_existing_file_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / FILE).write_text("mine")
    assert main(["init", FILE]) == 2
    assert "my_run.yaml exists and is not replaced" in capsys.readouterr().err
    assert (folder / FILE).read_text() == "mine"
    (folder / "file").write_text("mine")
    assert main(["init", "file/my_run.yaml"]) == 2
    assert "cannot write file/my_run.yaml" in capsys.readouterr().err


def test_an_algorithm_of_ones_own_is_written_by_its_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from dataclasses import dataclass
from dgpo import DGPO

@dataclass(frozen=True, kw_only=True)
class Mine(DGPO):
    strength: float = 2.0
    more: float = 1.0
"""
    (folder / "own_init_algorithm.py").write_text(source)
    config: Any = init("--algorithm", "own_init_algorithm:Mine", "--algorithm.strength", "3")
    assert (config.algorithm.strength, config.algorithm.more) == (3.0, 1.0)
    assert "  strength: 3.0\n" in Path(FILE).read_text()
