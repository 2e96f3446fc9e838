"""`dgpo score`: score a folder of pictures with captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dgpo.commands.words import HELP, take_name
from dgpo.errors import UserError

USAGE = {"dgpo score FOLDER --rewards NAME[=WEIGHT] ...": "score a folder of pictures with captions"}
ABOUT = (
    "Score the pictures of a folder. A caption is NAME.txt beside NAME.png, or a line of metadata.jsonl or\n"
    "captions.jsonl with file_name, prompt (or text) and whatever metadata the rewards read."
)


@dataclass(frozen=True, kw_only=True)
class ScoreFolder:
    """Options of `dgpo score`."""

    rewards: tuple[str, ...] = ()
    """Names of built-in rewards, or package.module:name, each with =WEIGHT where it is not 1."""
    batch_size: int = 32
    """Images scored at once."""
    out: Path | None = None
    """The file to write; None: scores.jsonl in the folder. An existing one is not replaced."""


def run(given: list[str]) -> int:
    """Write the scores, and print where they are."""
    from dgpo.commands.parse import parse, weights
    from dgpo.rewards.tools import score_folder

    usage = "dgpo score FOLDER --rewards NAME[=WEIGHT] ..."
    folder, rest = take_name(given or list(HELP[:1]))
    o = parse(ScoreFolder(), rest, usage, ABOUT)
    if not folder:
        raise UserError(f"name a folder of pictures first: {usage}")
    print(score_folder(Path(folder), weights(o.rewards), o.batch_size, o.out))
    return 0
