"""`dgpo score`: score a folder of pictures with captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    usage = "dgpo score FOLDER --rewards NAME[=WEIGHT] ..."
    folder, rest = take_name(given or list(HELP[:1]))
    o = parse(ScoreFolder(), rest, usage, ABOUT)
    if not folder:
        raise UserError(f"name a folder of pictures first: {usage}")
    from dgpo.rewards.score_folder import score_folder

    path, lines = score_folder(Path(folder), weights(o.rewards), o.batch_size, o.out)
    _show(lines)
    print(path)
    return 0


def _show(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print the mean of each score, with its standard error over prompts."""
    import torch
    from rich.console import Console
    from rich.table import Column, Table

    from dgpo.core.clusters import numbered, standard_error

    prompt = numbered([line["prompt"] for line in lines])
    table = Table("score", Column("mean", justify="right"), Column("standard error", justify="right"))
    for score in [key for key in lines[0] if key not in ("file_name", "prompt")]:
        values = torch.tensor([line[score] for line in lines], dtype=torch.float64)
        error = standard_error(values, prompt)
        table.add_row(score, f"{values.mean().item():.4f}", "" if error is None else f"{error:.4f}")
    out = Console(markup=False, emoji=False, highlight=False)
    out.print(f"{len(lines)} images of {len(prompt.unique())} prompts; standard errors are over prompts")
    out.print(table)
