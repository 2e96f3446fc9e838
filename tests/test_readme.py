"""The README's snippets do what they say: the Python runs, and every command is one that the tools know."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dgpo.commands import main as cli
from dgpo.config import Config

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
MY_RUN = "model: tiny-sd3\nprompts: shapes:train\nrewards: {shapes: 1}\niterations: 3\n"
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line.split("#")[0].strip() for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


def test_there_are_snippets() -> None:
    assert PYTHON
    assert any(line.startswith("dgpo train") for line in COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", PYTHON)
def test_python_snippets_run(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["result"].metrics["eval/held_out/warm/change"] > 0.1
    assert names["result"].run == Path("runs/tiny-sd3-warm"), "after the model and the reward"
    assert (tmp_path / names["result"].run / "final/pytorch_lora_weights.safetensors").is_file()


def test_the_python_twin_takes_at_most_ten_lines() -> None:
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert len(lines) <= 10


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "line",
    [line for line in COMMANDS if line.startswith("dgpo train") and not {"--resume", "--dry-run"} & set(line.split())],
)
def test_train_commands_are_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, would_train: list[Config]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_run.yaml").write_text(MY_RUN)
    assert cli.main(shlex.split(line)[1:]) == 130
    assert len(would_train) == 1


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("dgpo ") and " train" not in line])
def test_other_commands_name_commands_that_exist(line: str) -> None:
    words = shlex.split(line)
    assert words[1] in {"--help", *cli.COMMANDS}


def test_the_dry_run_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = (line for line in COMMANDS if "--dry-run" in line)
    seen: list[Config] = []
    monkeypatch.setattr("dgpo.training.dry_run.dry_run", lambda config, *_: seen.append(config) or ["everything"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_run.yaml").write_text(MY_RUN)
    assert cli.main(shlex.split(line)[1:]) == 0
    assert seen[0].iterations == 3
