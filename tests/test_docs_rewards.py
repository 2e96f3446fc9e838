"""The snippets of docs/rewards.md run, and its tables name every built-in reward and the settings that they have."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from dgpo.commands import main as cli
from dgpo.config import Config
from dgpo.rewards.registry import BUILT_IN

TEXT = (Path(__file__).parents[1] / "docs/rewards.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SETTINGS = re.findall(r"^\| `(dgpo\.[\w.]+)` \| (.*) \|$", TEXT, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "OCR" in snippet:
        pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {"__name__": "snippet"}
    exec(compile(snippet, "docs/rewards.md", "exec"), found)
    if "scores" in found:
        expected = re.findall(r"# (\{.*\})", snippet)
        assert str(found["scores"]) == expected[0]


def test_ones_own_reward_takes_five_lines() -> None:
    assert len([line for line in SNIPPETS[0].splitlines() if line.strip()]) == 5


def test_every_built_in_reward_has_a_row() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert not set(BUILT_IN) - named


@pytest.mark.parametrize(("path", "settings"), SETTINGS)
def test_settings_are_those_of_the_class(path: str, settings: str) -> None:
    module, _, name = path.rpartition(".")
    found = importlib.import_module(module)
    parameters = inspect.signature(getattr(found, name)).parameters
    told = {key: eval(value, vars(found)) for key, value in re.findall(r"`(\w+)=([^`]+)`", settings)}
    assert told
    assert told == {key: parameters[key].default for key in told}
    optional = {key for key, parameter in parameters.items() if parameter.default is not parameter.empty}
    assert optional - set(told) <= {"device", "dtype", "batch_size"}


@pytest.mark.parametrize("line", re.findall(r"^dgpo train .*", TEXT, re.MULTILINE))
def test_commands_are_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, would_train: list[Config]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(line)[1:]) == 130
    named = {*would_train[0].rewards, *would_train[0].eval_rewards}
    assert {name for name in named if not name.startswith("http://")} <= set(BUILT_IN)


@pytest.mark.slow
@pytest.mark.parametrize("line", re.findall(r"^dgpo (?:reward|score) .*", TEXT, re.MULTILINE))
def test_checks_and_scores_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if " ocr " in line:
        pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    function = SNIPPETS[0][SNIPPETS[0].index("def ") : SNIPPETS[0].index("config =")]
    Path("my_rewards.py").write_text(function, encoding="utf-8")
    Path("signs.txt").write_text('a sign that says "OPEN"\n', encoding="utf-8")
    Path("pictures").mkdir()
    for grey in (0, 80, 160, 240):
        Image.new("RGB", (64, 64), (grey, grey, grey)).save(f"pictures/{grey}.png")
        Path(f"pictures/{grey}.txt").write_text("a grey wall", encoding="utf-8")
    assert cli.main(shlex.split(line)[1:]) == 0


@pytest.mark.parametrize("line", re.findall(r"^dgpo serve-reward .*", TEXT, re.MULTILINE))
def test_served_rewards_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("dgpo.rewards.http.serve.serve", lambda name, options: seen.append(name))
    assert cli.main(shlex.split(line)[1:]) == 0
    assert set(seen) <= set(BUILT_IN)
