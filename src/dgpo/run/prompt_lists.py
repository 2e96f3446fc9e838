"""prompts.json of a run folder: how many prompts each of its lists has, and their hash.

A config names files, and files change. A run that went on with other prompts would train what it held out, and compare
scores of different prompts as pairs; so would an evaluation of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo.data.prompts import PromptSet
from dgpo.errors import UserError
from dgpo.utils.files import whole

FILE = "prompts.json"
TRAIN = "train"
"""The list that trains; the others are evaluation sets, under "eval/" and their names."""


def named(trained: PromptSet, sets: Mapping[str, PromptSet]) -> dict[str, PromptSet]:
    """All lists of a run under their names in the file."""
    return {TRAIN: trained, **{f"eval/{name}": prompts for name, prompts in sets.items()}}


def keep(run: Path, lists: Mapping[str, PromptSet]) -> None:
    """Write what a run has; lists that it has no more stay as they were."""
    found = read(run) | {name: _told(prompts) for name, prompts in lists.items()}
    with whole(run / FILE) as unfinished:
        unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def read(run: Path) -> dict[str, Any]:
    """What `keep` wrote; nothing of a run of an earlier version."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require_same(run: Path, lists: Mapping[str, PromptSet], instead: str) -> None:
    """Refuse lists that are not what the run began with. instead: what else would do, as a clause."""
    before = read(run)
    for name, prompts in lists.items():
        now = _told(prompts)
        if name in before and before[name] != now:
            what = "the prompts that train" if name == TRAIN else f"the evaluation set {name.removeprefix('eval/')}"
            raise UserError(
                f"{what} are not those that {run} began with: {now['prompts']} now, {before[name].get('prompts')} "
                f"then, with other texts or metadata. Put the file back as it was, or {instead}"
            )


def _told(prompts: PromptSet) -> dict[str, Any]:
    rows = [*zip(prompts.prompts, prompts.metadata)]
    text = json.dumps(rows, sort_keys=True, default=lambda value: type(value).__name__)
    return {"prompts": len(prompts), "sha256": hashlib.sha256(text.encode()).hexdigest()}
