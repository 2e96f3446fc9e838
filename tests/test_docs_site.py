"""The pages of the site: all are in the navigation, links lead somewhere, commands exist, the reference is whole."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

import dgpo
from dgpo.commands import main as cli
from dgpo.recipes import recipe
from dgpo.report.health import HEALTH

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
GUIDES = [ROOT / "docs" / f"{name}.md" for name in ("index", "sd35", "several_gpus", "troubleshooting", "own_reward")]
COMMANDS = [
    line.split(" #")[0].strip()
    for page in GUIDES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if "dgpo " in line and "pip install" not in line
]


def build_docs() -> ModuleType:
    """tools/build_docs.py, which is no package."""
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "tools" / "build_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_is_in_the_navigation(page: Path) -> None:
    assert re.search(rf"\s{re.escape(page.name)}$", NAVIGATION, re.MULTILINE)


def test_links_of_the_site_lead_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = build_docs()
    monkeypatch.setattr(tool, "STAGED", tmp_path / "docs")
    tool.stage()
    assert tool.missing_files(tmp_path / "docs") == []


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text('[a](gone.md#part) ![b](gone.png) <img src="gone.svg"> [c](https://x.y)')
    assert [line.split()[3].strip(",") for line in build_docs().missing_files(tmp_path)] == [
        "gone.md",
        "gone.png",
        "gone.svg",
    ]


def test_the_reference_names_everything_public() -> None:
    named = re.findall(r"^::: dgpo\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(dgpo.__all__)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_guides_exist(line: str) -> None:
    words = shlex.split(line)
    words = words[words.index("dgpo") + 1 :]
    assert words[0] in cli.COMMANDS
    for word in words:
        if re.fullmatch(r"sd\w+(@\w+)?", word):
            recipe(word)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("index", "own_reward", "sd35", "runs"))]
)
def test_a_page_with_first_commands_says_how_to_activate_the_environment(page: Path) -> None:
    assert "source .venv/bin/activate" in page.read_text(encoding="utf-8")


def test_the_report_page_explains_every_chart_of_the_training() -> None:
    rows = re.findall(r"^\| (`\w+`.*?) \|", (ROOT / "docs" / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*HEALTH} <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_formulas_become_mathml() -> None:
    markdown = pytest.importorskip("markdown")
    pytest.importorskip("latex2mathml")
    spec = importlib.util.spec_from_file_location("formulas", ROOT / "tools" / "formulas.py")
    assert spec is not None
    assert spec.loader is not None
    formulas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formulas)
    html = markdown.markdown("costs $5, `$HOME$`, $x_0$\n\n$$\\frac{a_i}{b_i}$$", extensions=[formulas.Formulas()])
    assert html.count("<math") == 2
    assert "<mfrac>" in html
    assert "$5" in html
    assert "<code>$HOME$</code>" in html
