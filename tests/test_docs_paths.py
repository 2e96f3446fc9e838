"""What the documents and docstrings name is there: files, modules and what is in them. Every file says what it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FILES = sorted(SOURCE.rglob("*.py"))
PAGES = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"]

PATH = re.compile(r"`((?:[\w-]+/)*[\w-]+\.py)`")
"""`core/flow.py` or `setup.py`"""
DOTTED = re.compile(r"(?<![\w./-])dgpo(?:\.[A-Za-z_]\w*)+(?!/)")
"""dgpo.core.flow, or a name in it"""
USERS = {"my_rewards.py"}


def missing(text: str, beside: Path) -> Iterator[str]:
    """Names in a text that lead nowhere. beside: the folder of the text"""
    for path in PATH.findall(text):
        places = (ROOT, SOURCE, SOURCE / "dgpo", beside)
        if path not in USERS and not any((place / path).exists() for place in places):
            yield path
    for name in DOTTED.findall(text):
        if not leads_somewhere(name.split(".")):
            yield name


def leads_somewhere(parts: list[str]) -> bool:
    """Whether dgpo.package.module.Name is a module, or a name that the module's source has."""
    for length in range(len(parts), 0, -1):
        place = SOURCE.joinpath(*parts[:length])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.is_file():
            return length == len(parts) or re.search(rf"\b{parts[length]}\b", file.read_text()) is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_documents_name_exists(page: Path) -> None:
    assert not [*missing(page.read_text(encoding="utf-8"), page.parent)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_every_file_opens_with_what_it_is_and_names_what_exists(file: Path) -> None:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    assert text
    assert not text.startswith("TODO")
    assert not [*missing(text, file.parent)]


def test_contributing_says_what_every_room_holds() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE))
    assert named == {file.parent.name for file in SOURCE.glob("dgpo/*/__init__.py")}


def test_a_name_that_leads_nowhere_is_seen() -> None:
    text = (
        "`src/dgpo/train.py`, `core/flow.py`, `core/mystery.py`, dgpo.core.flow.mystery, dgpo.core.flow.expand, dgpo.x"
    )
    assert [*missing(text, ROOT)] == ["src/dgpo/train.py", "core/mystery.py", "dgpo.core.flow.mystery", "dgpo.x"]
