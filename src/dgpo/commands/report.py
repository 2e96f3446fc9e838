"""`dgpo report`: write a run's report anew."""

from __future__ import annotations

from pathlib import Path

from dgpo.commands.words import HELP, take_name
from dgpo.errors import UserError

USAGE = {"dgpo report RUN": "write RUN/report.html anew"}


def run(given: list[str]) -> int:
    """Write the page, and print where it is."""
    usage = "dgpo report RUN"
    if given and given[0] in HELP:
        print(f"usage: {usage}\n\nWrite RUN/report.html anew from the run's metrics and samples.")
        return 0
    folder, rest = take_name(given)
    if not folder:
        raise UserError(f"name a run folder first: {usage}")
    if rest:
        raise UserError(f"dgpo report takes one run folder; got also {' '.join(rest)}")
    from dgpo.report import write_report

    print(write_report(Path(folder)))
    return 0
