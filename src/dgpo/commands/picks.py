"""`dgpo picks`: write what people picked in a run as a dataset and as pictures."""

from __future__ import annotations

from pathlib import Path

from dgpo.commands.words import HELP, HELP_ALL, announce, take_name, take_option
from dgpo.errors import UserError

USAGE = {"dgpo picks RUN [--out FOLDER]": "write what people picked as a dataset, for --offline and other programs"}
ABOUT = (
    "Write the answered groups of a run of `dgpo teach` into a new folder: latents and rewards, which\n"
    "`dgpo train --offline FOLDER` reads, the pictures as PNG files with a line for each in pictures.jsonl, and the\n"
    "answers.\n"
    "- --out FOLDER: where; by default the folder picks"
)


def run(given: list[str]) -> int:
    """Write the folder, and say what is in it."""
    usage = "dgpo picks RUN [--out FOLDER]"
    if {*HELP, HELP_ALL} & {*given}:
        print(f"usage: {usage}\n\n{ABOUT}")
        return 0
    name, rest = take_name(given)
    out, rest = take_option(rest, "--out", "a new folder: --out picks")
    if not name or rest:
        raise UserError(f"{'unknown ' + ' '.join(rest) if rest else 'name a run first'}: {usage}")
    announce("picks", given)
    from dgpo.config import to_dict
    from dgpo.run.folder import stored_config
    from dgpo.teach import picks
    from dgpo.teach.export import export

    source, folder = Path(name), Path(out or "picks")
    config = stored_config(name)
    if not (source / picks.NAME).exists():
        raise UserError(f"{name} has no {picks.NAME}: nobody has picked a picture in it. dgpo teach makes such a run")
    number = export(source, to_dict(config), folder)
    print(f"{folder}: {number} groups of {config.group_size} pictures. Learn from them: dgpo train --offline {folder}")
    return 0
