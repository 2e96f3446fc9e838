"""How rewards are found and called, and that no failure becomes a score."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dgpo
from dgpo.errors import UserError
from dgpo.rewards.base import RewardError, call_reward, check_metadata, requires
from dgpo.rewards.registry import BUILT_IN, resolve

PROMPTS = ["a", "b", "c d", "e", "f"]
IMAGES = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 8, 8)


def call(reward, folder=None):
    return call_reward("mine", reward, IMAGES, PROMPTS, [{"n": i} for i in range(5)], folder)


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5.5], np.array([1, 2, 3, 4, 5.5]), torch.tensor([1, 2, 3, 4, 5.5])])
def test_lists_arrays_and_tensors_are_scores(values):
    scores = call(lambda *_: values)
    assert list(scores) == ["mine"]
    assert scores["mine"].tolist() == [1, 2, 3, 4, 5.5]
    assert scores["mine"].dtype == torch.float32


def test_of_a_dict_the_first_entry_is_the_score():
    scores = call(lambda *_: {"total": [1] * 5, "part": [2] * 5})
    assert {name: score.tolist() for name, score in scores.items()} == {"mine": [1] * 5, "mine/part": [2] * 5}


def test_a_reward_gets_images_prompts_and_metadata_without_gradient():
    def reward(images, prompts, metadata):
        assert not torch.is_grad_enabled()
        return [images[i].mean() * 4 + len(p) + m["n"] for i, (p, m) in enumerate(zip(prompts, metadata))]

    assert call(reward)["mine"].tolist() == [1, 3, 7, 7, 9]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_stops_with_its_image_kept(bad, tmp_path):
    with pytest.raises(RewardError, match=r"'mine' returned .*Image 2 of 5, prompt 'c d'") as caught:
        call(lambda *_: [0, 0, bad, 0, bad], tmp_path / "failures")
    (png,) = (tmp_path / "failures").glob("*.png")
    assert str(png) in str(caught.value)
    assert np.asarray(Image.open(png)).tolist() == [[[128] * 3] * 8] * 8
    note = json.loads(png.with_suffix(".json").read_text())
    assert note == {"reward": "mine", "prompt": "c d", "metadata": {"n": 2}}


def test_an_exception_names_the_image_that_raises(tmp_path):
    def reward(images, prompts, metadata):
        return [1 / (m["n"] - 3) for m in metadata]

    with pytest.raises(RewardError, match=r"raised ZeroDivisionError.*Image 3 of 5, prompt 'e'") as caught:
        call(reward, tmp_path)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(5, 1), r"shape \(5, 1\) for mine; .*\(5,\)"),
        (torch.zeros(4), r"shape \(4,\)"),
        (0.5, r"shape \(\)"),
        (None, "a NoneType that is no list of numbers"),
        ([None] * 5, "a list that is no list of numbers"),
        ({}, "an empty dict"),
        ({"total": [0] * 5, "part": [0] * 4}, "shape .* for mine/part"),
    ],
)
def test_what_is_no_score_stops(returned, message):
    with pytest.raises(RewardError, match=message):
        call(lambda *_: returned)


def test_a_users_error_passes_as_it_is():
    def reward(images, prompts, metadata):
        raise UserError("a message for the user")

    with pytest.raises(UserError, match=r"^a message for the user$"):
        call(reward)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_ins_resolve_or_name_the_extra_that_is_missing(name, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("DGPO_JUDGE_MODEL", "any")
    try:
        found: object = resolve(name)
    except UserError as error:
        found = error
    assert callable(found) or "pip install 'dgpo[" in str(found)


def test_ones_own_rewards_resolve(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def flat(images, prompts, metadata):\n    return [1.0] * len(prompts)\n"
        "class Made:\n    def __call__(self, images, prompts, metadata):\n        return [2.0] * len(prompts)\n"
        "class Needy:\n    def __init__(self, path):\n        pass\n"
        "made, number = Made(), 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as a console script finds it
    for name, score in (("flat", 1), ("Made", 2), ("made", 2)):
        assert call(resolve(f"my_rewards:{name}"))["mine"].tolist() == [score] * 5
    for name, message in (
        ("my_rewards:number", "is a int"),
        ("my_rewards:Needy", "cannot be made without arguments"),
        ("my_rewards:flt", "module my_rewards has no 'flt'"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(name)


SHADOWS = ("scipy", "json", "transformers", "torchvision", "onnxruntime", "msgspec", "colorsys")
FROM_THE_COMMAND_LINE = """
import os
import subprocess
import sys
from pathlib import Path
sys.path = [path for path in sys.path if path]  # as a console script finds it
import dgpo.commands.main
import dgpo
from dgpo.errors import UserError
from dgpo.rewards.registry import BUILT_IN, resolve
before = list(sys.path)
for name in sys.argv[1:] or BUILT_IN:
    try:
        resolve(name)
    except UserError as error:
        print(error)
    assert sys.path == before, sys.path
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [[], ["my_rewards:flat"], ["http://127.0.0.1:1"], ["scipy:nothing"], ["colorsys:no"]])
def test_files_of_the_working_folder_never_stand_in_for_installed_modules(tmp_path, names):
    for shadow in SHADOWS:
        (tmp_path / f"{shadow}.py").write_text(f"open('{shadow}.ran', 'w').close()")
    (tmp_path / "helper.py").write_text("import colorsys, json, scipy.stats\nscore = 1.0\n")
    (tmp_path / "my_rewards.py").write_text(
        "import json, scipy\nimport helper\n"
        "def flat(images, prompts, metadata):\n    return [helper.score] * len(prompts)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(dgpo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", FROM_THE_COMMAND_LINE, *names]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.ran")) == []
    if names == ["my_rewards:flat"]:
        assert not done.stdout
    elif names == ["colorsys:no"]:
        assert f"{os.sep}lib{os.sep}" in done.stdout, "it tells which module it took"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape", "Did you mean 'shapes'"),
        ("no_such_package.x:f", "there is no module no_such_package.x"),
        ("dgpo.rewards.nothing:f", "there is no module dgpo.rewards.nothing"),
        (":f", "package.module:function"),
        ("dgpo.rewards:", "package.module:function"),
    ],
)
def test_names_that_are_no_rewards(name, message):
    with pytest.raises(UserError, match=message):
        resolve(name)


def test_a_module_that_lacks_another_names_the_other(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="needs the module surely_not_installed"):
        resolve("needs_more:f")


def test_missing_metadata_is_told_before_and_during_a_run():
    @requires("include", "tag")
    def picky(images, prompts, metadata):
        return [0.0] * len(prompts)

    check_metadata(picky, [{"include": [], "tag": "x"}])
    check_metadata(lambda *_: [], [{}])
    with pytest.raises(UserError, match=r"picky reads include, tag .*; prompt 1 has no tag"):
        check_metadata(picky, [{"include": [], "tag": "x"}, {"include": []}])
    with pytest.raises(UserError, match="prompt 0 has no include, tag"):
        call(picky)
