"""A path that was written without its colon is told with one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dgpo.algorithms.registry import algorithm_class
from dgpo.errors import UserError
from dgpo.rewards.registry import require_known
from dgpo.utils.imports import import_module, meant


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a module, a module in a package, and a folder that is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    Path("warm_rewards.py").write_text("def warm(images, prompts, metadata): ...\n")
    for folder in ("cold_rewards", "plain"):
        Path(folder).mkdir()
    Path("cold_rewards/__init__.py").touch()
    Path("cold_rewards/ice.py").touch()


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("warm_rewards.warm", "warm_rewards:warm"),
        ("cold_rewards.ice.cold", "cold_rewards.ice:cold"),
        ("warm_rewards", "warm_rewards:NAME"),
        ("./warm_rewards.py", "warm_rewards:NAME"),
        ("cold_rewards/ice.py", "cold_rewards.ice:NAME"),
        ("plain", None),
        ("gone.warm", None),
        ("pickscor", None),
    ],
)
def test_the_path_that_is_meant(written: str, path: str | None) -> None:
    assert meant(written) == path


def test_a_reward_with_a_dot_for_the_colon() -> None:
    with pytest.raises(UserError) as error:
        require_known("warm_rewards.warm")
    assert str(error.value) == (
        "unknown reward 'warm_rewards.warm'. Your own is given as package.module:function, --rewards warm_rewards:warm"
    )


def test_an_algorithm_with_a_dot_for_the_colon() -> None:
    with pytest.raises(UserError, match="Your own is given as warm_rewards:Warm"):
        algorithm_class("warm_rewards.Warm")


@pytest.mark.parametrize("name", ["warm_rewards.py", "./warm_rewards.py"])
def test_a_file_in_the_place_of_a_module(name: str) -> None:
    with pytest.raises(UserError, match=r"there is no module .*py here\. A module is named warm_rewards$"):
        import_module(name, "reward 'x'")
