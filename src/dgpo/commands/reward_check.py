"""`dgpo reward check`: call a reward and say whether it keeps its contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgpo.commands.words import HELP, take_name
from dgpo.errors import UserError

USAGE = {"dgpo reward check NAME [...]": "call a reward and say whether it keeps its contract"}
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
    from dgpo.rewards.tools import check_source

    name, rest = take_name(rest or list(HELP[:1]))
    o = parse(RewardCheck(), rest, usage, ABOUT)
    if not name:
        raise UserError(f"name a reward first: {usage}")
    return 0 if check_source(name, o.images, o.prompts, o.batch, o.tolerance, o.json) else 1
