"""`dgpo studio`: watch runs in a browser."""

from __future__ import annotations

from pathlib import Path

from dgpo.commands.words import announce, take_name
from dgpo.utils.hub_id import RUNS

USAGE = {"dgpo studio [FOLDER] [--port N ...]": "watch the runs in a folder, by default runs, in a browser"}
HELP = (
    "Show the runs in FOLDER (runs, unless another one is named) on a local web page that follows them while they "
    "train: curves, scores, pictures, failures, comparisons, and buttons to save, evaluate or stop."
)


def run(given: list[str]) -> int:
    """Serve the page until a signal comes."""
    announce("studio", given)
    from dgpo.commands.parse import parse
    from dgpo.studio.options import Options

    folder, rest = take_name(given)
    options = parse(Options(), rest, "dgpo studio [FOLDER]", HELP)
    from dgpo.studio.serve import serve

    serve(Path(folder or RUNS), options)
    return 0
