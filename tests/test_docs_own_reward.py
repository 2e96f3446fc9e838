"""The notebook of docs/ has the tutorial's code, its cells run from top to bottom, and the reward rises."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dgpo.commands import main as cli
from dgpo.config import Config

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "own_reward.md").read_text(encoding="utf-8")
SNIPPETS = [snippet.strip() for snippet in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)]


def cells() -> list[str]:
    notebook = json.loads((DOCS / "own_reward.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_the_code_of_the_tutorial() -> None:
    assert cells()[: len(SNIPPETS)] == SNIPPETS


@pytest.mark.slow
def test_the_reward_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells()):
        exec(compile(cell, f"own_reward.ipynb, cell {number}", "exec"), shared)
    before, after = map(float, re.findall(r"warm: (\S+) before, (\S+) after", capsys.readouterr().out)[0])
    assert after > before + 0.1
    assert "both" in shared


@pytest.mark.parametrize("line", re.findall(r"^dgpo train .*", TEXT, re.MULTILINE))
def test_the_command_trains_the_same_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, would_train: list[Config]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_rewards.py").write_text(SNIPPETS[0], encoding="utf-8")
    Path("my_prompts.txt").write_text("a circle\n", encoding="utf-8")
    assert cli.main(shlex.split(line)[1:]) == 130
    assert would_train[0].rewards == {"my_rewards:warm": 1.0}
    assert would_train[0].eval_prompts == {"mine": "my_prompts.txt"}
    assert (would_train[0].iterations, would_train[0].num_groups, would_train[0].group_size) == (8, 4, 8)


def test_the_runs_of_the_tutorial_have_folders_of_their_own() -> None:
    folders = re.findall(r'out="([^"]+)"', TEXT) + re.findall(r"^dgpo train .*--out (\S+)", TEXT, re.MULTILINE)
    assert len(folders) == 2
    assert len({*folders}) == 2


def test_the_notebook_has_the_words_of_the_tutorial() -> None:
    notebook = json.loads((DOCS / "own_reward.ipynb").read_text(encoding="utf-8"))
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    kept = {line for text in texts[1 : len(SNIPPETS)] for line in text.splitlines()}
    assert kept
    assert kept <= {*TEXT.splitlines()}


def test_the_check_of_the_tutorial_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_rewards.py").write_text(SNIPPETS[0], encoding="utf-8")
    (line,) = re.findall(r"^dgpo reward check .*", TEXT, re.MULTILINE)
    assert cli.main(shlex.split(line)[1:]) == 0
