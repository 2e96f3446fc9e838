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
COUNTS = re.findall(r"^\| `(\w+)`[^|]*\| (\d+) \|$", TEXT, re.MULTILINE)
ROWS = re.findall(r"^\| [^|]+ \| (`--[^|]+) \|", TEXT, re.MULTILINE)
COMMANDS = [line.replace("\\\n", "") for line in re.findall(r"^dgpo train (?:.*\\\n)*.*", TEXT, re.MULTILINE)]


def per_image(config: Config) -> float:
    return network_forwards(config) / (config.num_groups * config.group_size)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that would train."""
    seen: list[Config] = []

    def record(config: Config, **_: object) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("dgpo.training.loop.train", record)
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.mark.parametrize(("name", "forwards"), COUNTS)
def test_the_forwards_of_a_recipe_are_counted(name: str, forwards: str) -> None:
    assert per_image(recipe(name)) == int(forwards)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_take_the_forwards_that_are_told(line: str, trained: list[Config]) -> None:
    name, *flags = shlex.split(line)[2:]
    assert cli.main(["train", name, *flags]) == 130
    told, before = map(int, re.findall(r"That is (\d+) forwards per image instead of (\d+)", TEXT)[0])
    assert per_image(trained[0]) == told
    assert per_image(recipe(name)) == before


@pytest.mark.parametrize("row", ROWS)
def test_the_demo_has_every_setting_that_helped(row: str, trained: list[Config]) -> None:
    words = [word for flags in re.findall(r"`(--[^`]+)`", row) for word in shlex.split(flags)]
    words = [word for word in words if word not in ("--optimizer.decay-steps", "--algorithm.kl-coef", "0.1")]
    assert cli.main(["train", "tiny", "--out", "runs/tiny", *words]) == 130
    demo = recipe("tiny")
    assert (trained[0].algorithm, trained[0].sampling) == (demo.algorithm, demo.sampling)
    assert trained[0].train_images == demo.train_images
    assert (trained[0].drop_equal_groups, trained[0].redraw_groups) == (demo.drop_equal_groups, demo.redraw_groups)


def test_all_of_the_page_is_looked_at() -> None:
    assert (len(COUNTS), len(COMMANDS), len(ROWS)) == (4, 2, 6)
