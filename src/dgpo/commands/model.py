"""`dgpo model`: the models that lie in this package, and where."""

from __future__ import annotations

from pathlib import Path

from dgpo.commands.words import HELP
from dgpo.errors import UserError
from dgpo.utils.places import EMBEDDED, model_path

USAGE = {"dgpo model [NAME]": "the models inside this package, or the folder of one"}
ABOUT = (
    "Print the folder of a model that lies in this package, which stock diffusers reads as well. In Python:\n"
    'dgpo.model_path("tiny-sd3"). Without NAME, list the models: what each is, and its size.'
)


def run(given: list[str]) -> int:
    """Print one folder, or a line for each model."""
    usage = "dgpo model [NAME]"
    if given and given[0] in HELP:
        print(f"usage: {usage}\n\n{ABOUT}")
        return 0
    if len(given) > 1:
        raise UserError(f"dgpo model takes one name; got also {' '.join(given[1:])}")
    if given:
        print(model_path(given[0]))
        return 0
    width = max(map(len, EMBEDDED))
    for name, folder in EMBEDDED.items():
        print(f"{name:<{width}}  {_size(folder) / 1e6:.0f} MB  {_what(folder)}")
    return 0


def _what(folder: Path) -> str:
    """The first sentence of its model card."""
    _, _, text = (folder / "README.md").read_text(encoding="utf-8").partition(f"# {folder.name}\n")
    return text.strip().partition(". ")[0]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
