"""`dgpo collect`: draw and score groups of images into a folder that `dgpo train --offline` learns from."""

from __future__ import annotations

import sys
from dataclasses import replace

from dgpo.commands.words import announce, take_option
from dgpo.errors import UserError

USAGE = {"dgpo collect RUN|MODEL --groups N [...]": "draw and score groups into a dataset"}
HELP = (
    "Draw groups of images for the config's prompts, with a run's best weights or a model, score them with the\n"
    "config's rewards, and write them into a new folder.\n"
    "- --groups N: how many\n"
    "- --out FOLDER: where; None: the folder groups"
)
FIELDS = (
    *("out", "prompts", "group_size", "rewards", "reward_normalization", "reward_tags", "reward_failures"),
    *("seed", "device", "dtype", "resolution", "sampling"),
)
"""What collecting reads, and `dgpo collect --help` shows."""


def run(given: list[str]) -> int:
    """Write the dataset, and print what is in it."""
    announce("collect", given)
    from dgpo.commands.configs import about, config_of, take_source
    from dgpo.commands.parse import parse

    usage = "dgpo collect RUN|MODEL --groups N"
    source, rest = take_source(given, usage)
    groups, rest = take_option(rest, "--groups", "the number of groups: --groups 100")
    config = parse(replace(config_of(source), out=None), rest, usage, about(HELP, given), shown=FIELDS)
    if groups is None:
        raise UserError(f"say how many groups to draw: {usage}")
    if not groups.isdecimal():
        raise UserError(f"--groups {groups} is no number of groups: {usage}")
    from dgpo.run.console import shown_progress
    from dgpo.training import apply

    weights = apply.chosen(source, config)  # now: a run in progress may save others meanwhile
    with shown_progress() as tell:
        found = apply.collect(source, config, groups=int(groups), out=config.out or "groups", tell=tell)
    print(f"weights: {weights}", file=sys.stderr, flush=True)
    folder, number, size, mean, spread = found
    print(f"{folder}: {number} groups of {size} images, mean reward {mean:.3f}, within a group ± {spread:.3f}")
    return 0
