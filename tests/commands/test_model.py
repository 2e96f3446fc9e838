"""`dgpo model` says which models lie in the package, and where."""

from __future__ import annotations

import re

import pytest

import dgpo
from dgpo.commands.main import main
from dgpo.utils.places import EMBEDDED


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_folder_of_a_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", name]) == 0
    assert capsys.readouterr().out == f"{dgpo.model_path(name)}\n"


def test_a_line_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*EMBEDDED]
    for line, words in zip(lines, ("scenes of simple shapes", "a word of two to four letters")):
        assert re.match(
            r"\S+ +[1-9]\d* MB  A Stable Diffusion 3 pipeline of [\d.]+ million parameters that draws", line
        )
        assert words in line


def test_two_names_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "tiny-sd3", "tiny-sd3-words"]) == 2
    assert "takes one name; got also tiny-sd3-words" in capsys.readouterr().err
