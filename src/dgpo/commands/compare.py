"""`dgpo compare`: one page that holds several runs against each other."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from dgpo.commands.words import HELP, take_option
from dgpo.errors import UserError

USAGE = {"dgpo compare RUN RUN [RUN ...] [--out FILE]": "compare runs on one page"}
PAGE = "compare.html"


def run(given: list[str]) -> int:
    """Write the page, and print where it is."""
    usage = next(iter(USAGE))
    if any(word in HELP for word in given):
        print(
            f"usage: {usage}\n\nCompare the curves, last scores, settings and last pictures of runs on one page.\n"
            f"The others are compared with the first.\n- --out FILE: a new HTML file; None: {PAGE}"
        )
        return 0
    out, rest = take_option(given, "--out", f"the name of a file: --out {PAGE}")
    folders = [*takewhile(lambda word: not word.startswith("-"), rest)]
    if len(folders) < len(rest):
        raise UserError(f"dgpo compare has no option {rest[len(folders)]}: {usage}")
    if len(folders) < 2:
        raise UserError(f"name two run folders or more: {usage}")
    from dgpo.report.comparison import compare

    print(compare([Path(folder) for folder in folders], out or PAGE))
    return 0
