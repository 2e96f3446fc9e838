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

Hashes = dict[str, dict[str, Any]]  # name of a list -> prompts, their number, and sha256

FILE = "prompts.json"
TRAIN = "train"
"""The list that trains; the others are evaluation sets."""


def of_set(name: str) -> str:
    """The name of an evaluation set's list."""
    return f"eval/{name}"


def hashes(sets: Mapping[str, PromptSet], trained: PromptSet | None = None) -> Hashes:
    """What the file says of evaluation sets, and of the prompts that train."""
    lists = {} if trained is None else {TRAIN: trained}
    return {name: _told(some) for name, some in (lists | {of_set(name): sets[name] for name in sets}).items()}


def keep(run: Path, lists: Hashes) -> None:
    """Write what a run has; lists that it has no more stay as they were."""
    found = read(run) | lists
    with whole(run / FILE) as unfinished:
        unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def read(run: Path) -> Hashes:
    """What `keep` wrote; nothing of a run of an earlier version."""
    try:
        found = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require_same(run: Path, lists: Hashes, instead: str) -> None:
    """Refuse lists that are not what the run began with. instead: what else would do, as a clause."""
    before = read(run)
    for name, now in lists.items():
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
