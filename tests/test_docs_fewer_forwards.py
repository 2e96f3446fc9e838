"""docs/fewer_forwards.md: its counts are those of the recipes, and its commands and flags are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dgpo.commands import main as cli
from dgpo.config import Config
from dgpo.recipes import recipe
from dgpo.training.geometry import network_forwards

TEXT = (Path(__file__).parents[1] / "docs/fewer_forwards.md").read_text(encoding="utf-8")
COUNTS = re.findall(r"^\| `(\w+)`[^|]*\| (\d+) \| (\d*)", TEXT, re.MULTILINE)
COMMANDS = re.findall(r"^dgpo train (.*)\n```\n\nThat is (\d+) forwards per image", TEXT, re.MULTILINE)


def per_image(config: Config) -> float:
    return network_forwards(config) / (config.num_groups * config.group_size)


@pytest.mark.parametrize(("name", "forwards", "of_parts"), COUNTS)
def test_the_forwards_of_a_recipe_are_counted(name: str, forwards: str, of_parts: str) -> None:
    assert per_image(recipe(name)) == int(forwards)
    assert not of_parts or per_image(recipe(f"{name}@24gb")) == int(of_parts)


@pytest.mark.parametrize(("line", "forwards"), COMMANDS)
def test_the_commands_take_the_forwards_that_are_told(
    line: str, forwards: str, would_train: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *shlex.split(line)]) == 130
    assert per_image(would_train[0]) == int(forwards)


def test_all_of_the_page_is_looked_at() -> None:
    assert (len(COUNTS), len(COMMANDS), TEXT.count("dgpo train sd35m")) == (4, 2, 2)
