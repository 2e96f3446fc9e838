"""`import dgpo`: what it gives, that nothing hides behind it, and what it costs."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from dataclasses import replace
from inspect import isfunction
from pathlib import Path

import pytest
import torch
from PIL import Image

import dgpo
from dgpo import UserError
from dgpo.commands.main import main
from dgpo.config import load_yaml
from dgpo.models.pipeline import PipelineModel

SURFACE = {
    *("AWM", "CRD", "DGPO", "RAM", "DiffusionDPO", "DiffusionNFT", "FlowGRPO", "Algorithm", "register_algorithm"),
    *("Config", "LoraConfig", "Optimizer", "Sampling"),
    *("NonFiniteError", "RewardAway", "RewardError", "RunFailed", "UserError"),
    *("train", "Result", "Callback", "collect", "compare", "evaluate", "sample"),
    *("group_reward", "requires", "load_model", "load_prompts", "model_path"),
}
HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "pydantic", "tyro", "numpy", "yaml", "PIL")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    environment = {"PYTHONPATH": str(Path(dgpo.__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_names_are_these_and_lead_somewhere() -> None:
    assert sorted(dgpo.__all__) == sorted(SURFACE)
    assert set(dir(dgpo)) >= SURFACE
    for name in SURFACE:
        assert callable(getattr(dgpo, name))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        dgpo.trian  # noqa: B018 # pyright: ignore


def test_no_module_has_the_name_of_anything_else() -> None:
    modules = {module.name for module in pkgutil.iter_modules(dgpo.__path__)}
    assert not modules & SURFACE


@pytest.mark.slow
def test_functions_stay_functions_whatever_is_imported_later() -> None:
    code = """
import importlib, pkgutil
import dgpo
for module in pkgutil.walk_packages(dgpo.__path__, "dgpo."):
    if not module.name.startswith("dgpo.__"):
        importlib.import_module(module.name)
try:
    import dgpo.train
except ModuleNotFoundError:
    print("no module")
print(*(type(getattr(dgpo, name)).__name__ for name in ("train", "evaluate", "sample", "collect")))
"""
    assert python(code).splitlines() == ["no module", "function function function function"]
    assert isfunction(dgpo.train)


@pytest.mark.parametrize(
    "code",
    [
        "import dgpo",
        "from dgpo.recipes import RECIPES",
        "import dgpo; dgpo.model_path('tiny-sd3')",
        "from dgpo.algorithms.registry import known_algorithms; known_algorithms()",
        "from dgpo.commands.main import main; main(['--version'])",
        "from dgpo.commands.main import main; main(['--help'])",
        "from dgpo.commands.main import main; main(['trian'])",
    ],
)
def test_looking_at_it_imports_nothing_heavy(code: str) -> None:
    printed = python(f"import sys\n{code}\nprint([name for name in {HEAVY} if name in sys.modules])")
    assert printed.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_help_takes_a_tenth_of_importing_torch() -> None:
    """The best of three, of the same processor time whatever else runs."""
    clock = "import time; start = time.process_time()\n{}\nprint(time.process_time() - start)"
    help_text = "from dgpo.commands.main import main; main(['--help'])"
    ours = min(float(python(clock.format(help_text)).splitlines()[-1]) for _ in range(3))
    theirs = min(float(python(clock.format("import torch"))) for _ in range(3))
    assert ours < theirs / 10


@pytest.mark.parametrize("given", ["", "os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'"])
def test_waiting_threads_sleep_unless_the_user_wants_otherwise(given: str) -> None:
    printed = python(
        f"import os, sys\n{given}\nimport dgpo\nprint('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    assert printed.split() == ["False", "ACTIVE" if given else "PASSIVE"]


def test_embedded_models_have_a_path() -> None:
    assert (dgpo.model_path("tiny-sd3") / "model_index.json").is_file()
    with pytest.raises(UserError, match=r"there is no embedded model 'tiny-sd4'\. Did you mean 'tiny-sd3'"):
        dgpo.model_path("tiny-sd4")


def test_a_bare_config_trains_nothing_and_shows_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        dgpo.train(dgpo.Config(iterations=2))
    message = str(error.value)
    assert message.startswith("model, prompts and rewards are empty")
    for line in ("  prompts: prompts.txt\n", "  rewards: {pickscore: 1.0}\n", "dgpo.Config(model=", "dgpo train tiny"):
        assert line in message
    for given, missing in (
        ({"model": "tiny-sd3", "rewards": {"shapes": 1.0}}, "prompts is empty"),
        ({"prompts": ("a cat",), "rewards": {"shapes": 1.0}}, "model is empty"),
        ({"model": "tiny-sd3"}, "prompts and rewards are empty"),
        ({"offline": "data"}, "model is empty"),
        ({"offline": "data", "model": "tiny-sd3", "eval_prompts": {"seen": "shapes:seen"}}, "rewards is empty"),
    ):
        with pytest.raises(UserError, match=f"^{missing}"):
            dgpo.train(dgpo.Config(**given))
    Path("mine.yaml").write_text("iterations: 3\n")
    for words in (["train", "mine.yaml"], ["train", "mine.yaml", "--dry-run"], ["plan", "mine.yaml"]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("dgpo: model, prompts and rewards are empty")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    shown = re.findall(r"^  (\w+: .*)$", message, re.MULTILINE)
    Path("shown.yaml").write_text("\n".join(shown))
    assert load_yaml("shown.yaml").rewards == {"pickscore": 1.0}


def test_a_run_is_evaluated_sampled_and_collected_with_its_own_config(finished_run: Path, tmp_path: Path) -> None:
    weights, metrics, before = dgpo.evaluate(finished_run)
    assert "iteration-00000" in weights
    assert {"eval/seen/reward", "eval/unseen/reward", "eval/seen/reward/stderr"} <= set(metrics) & set(before)
    assert "eval/seen/reward/change" in metrics
    pictures = dgpo.sample(finished_run, prompts=["a red cat", "two dogs"], images=3, out=tmp_path / "new.png")
    assert pictures.shape == (2, 3, 3, 64, 64)
    assert pictures.dtype == torch.float32
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert Image.open(tmp_path / "new.png").format == "PNG"
    torch.testing.assert_close(dgpo.sample(finished_run, prompts=["a red cat"], images=1)[0, 0], pictures[0, 0])
    folder, groups, size, reward, spread = dgpo.collect(finished_run, groups=2, out=tmp_path / "data")
    assert (folder, groups, size) == (tmp_path / "data", 2, 3)
    assert (folder / "dataset.json").is_file()
    assert spread > 0
    assert reward == reward


def test_a_model_is_what_the_source_says(tiny_folder: Path, tmp_path: Path) -> None:
    settings = {"sampling": dgpo.Sampling(num_inference_steps=2), "algorithm": dgpo.AWM(), "device": "cpu"}
    config = dgpo.Config(model="another", eval_prompts={"one": str(tmp_path / "one.txt")}, **settings)
    (tmp_path / "one.txt").write_text("a cat\na dog\n")
    with pytest.raises(UserError, match="rewards is empty"):
        dgpo.evaluate(tiny_folder, config)
    with pytest.raises(UserError, match="eval_prompts is empty"):
        dgpo.evaluate(tiny_folder)
    with pytest.raises(UserError, match="prompts and rewards are empty"):
        dgpo.collect(tiny_folder, groups=2, out=tmp_path / "data")
    with pytest.raises(UserError, match="there is no folder"):
        dgpo.evaluate(tmp_path / "typo")
    with pytest.raises(UserError, match=r"prompts='a cat' is one text"):
        dgpo.sample(tiny_folder, prompts="a cat")
    scored = dgpo.evaluate(tiny_folder, replace(config, rewards={"runs:colour": 1.0}))
    assert scored.weights == f"{tiny_folder}, as pretrained"
    assert isinstance(dgpo.load_model(tiny_folder, device="cpu"), PipelineModel)
