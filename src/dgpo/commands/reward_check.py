"""`dgpo reward check`: call a reward and say whether it keeps its contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dgpo.commands.words import HELP, take_name
from dgpo.errors import UserError

if TYPE_CHECKING:
    from dgpo.rewards.base import Batch
    from dgpo.rewards.check import Finding

USAGE = {"dgpo reward check NAME [...]": "call a reward and say whether it keeps its contract"}
MARKS = {True: ("passed", "green"), False: ("FAILED", "bold red"), None: ("", "")}
ABOUT = (
    "Call a reward, a built-in one or package.module:name, and say whether it keeps its contract: finite scores\n"
    "that depend on nothing but the image, its prompt and its metadata. The exit code is 0, or 1 if it does not."
)


@dataclass(frozen=True, kw_only=True)
class RewardCheck:
    """Options of `dgpo reward check`."""

    images: Path | None = None
    """A folder of pictures, of which those of the first one's size are taken; None: renders of the embedded world."""
    prompts: str | None = None
    """Where prompts with what the reward reads come from, as in dgpo train; None: the pictures' captions, or the
    embedded world's prompts."""
    batch: int = 8
    """Images scored at once."""
    tolerance: float = 0.01
    """Scores are equal if they differ by so many deviations of the scores at hand."""
    json: bool = False
    """Print JSON instead of a table."""


def run(given: list[str]) -> int:
    """Put a reward to the test; 1 where it fails."""
    usage = "dgpo reward check NAME"
    command, *rest = given or ["check"]
    if command not in ("check", *HELP):
        raise UserError(f"there is no command 'reward {command}'; there is: {usage}")
    from dgpo.commands.parse import parse

    name, rest = take_name(rest or list(HELP[:1]))
    o = parse(RewardCheck(), rest, usage, ABOUT)
    if not name:
        raise UserError(f"name a reward first: {usage}")
    from dgpo.rewards.check_by_name import check_by_name

    shown, findings = check_by_name(name, o.images, o.prompts, o.batch, o.tolerance)
    passed = all(finding.passed is not False for finding in findings)
    if o.json:
        print(json.dumps({"reward": name, "passed": passed, "findings": [f._asdict() for f in findings]}, indent=2))
    else:
        _show(name, shown, o.tolerance, findings)
    return 0 if passed else 1


def _show(name: str, shown: Batch, tolerance: float, findings: Sequence[Finding]) -> None:
    """Print a row of each check."""
    from rich.console import Console
    from rich.table import Table

    out = Console(emoji=False, highlight=False)
    height, width = shown.images.shape[2:]
    table = Table("check", "", "found", title_justify="left")
    for finding in findings:
        word, style = MARKS[finding.passed]
        table.add_row(finding.check, f"[{style}]{word}[/]" if word else "", _plain(finding.found))
    failed = sum(finding.passed is False for finding in findings)
    out.print(_plain(f"{name}: {len(shown.prompts)} images of {width}x{height}, tolerance {tolerance:g} deviations"))
    out.print(table)
    out.print(f"{failed} failed" if failed else "all passed", style="bold red" if failed else "green")


def _plain(text: str) -> str:
    """Brackets of a text are no styles."""
    return text.replace("[", r"\[")
