"""The snippets of docs/rewards.md run, and its tables name every built-in reward and the settings that they have."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest

from dgpo import cli
from dgpo.config import Config
from dgpo.rewards.base import BUILT_IN

TEXT = (Path(__file__).parents[1] / "docs/rewards.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SETTINGS = re.findall(r"^\| `(dgpo\.[\w.]+)` \| (.*) \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "OCR" in snippet:
        pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["dgpo.train"], "write_report", lambda run: None)  # its figures take seconds
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
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    told = dict(re.findall(r"`(\w+)=([^`]+)`", settings))
    assert told
    assert {key: eval(value) for key, value in told.items()} == {key: parameters[key].default for key in told}
    assert set(parameters) - set(told) <= {"device", "dtype", "batch_size"}


@pytest.mark.parametrize("line", re.findall(r"^dgpo .*", TEXT, re.MULTILINE))
def test_commands_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def record(config: Config, **_: object) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["dgpo.train"], "train", record)
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(line)[1:]) == 130
    assert set(seen[0].rewards) | set(seen[0].eval_rewards) <= set(BUILT_IN)
