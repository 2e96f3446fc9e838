"""Names of evaluation metrics: `eval/SET/SCORE`, `eval/SET/SCORE/TAG` for the prompts of one tag, and notes on it.

The name of a reward may hold slashes itself (a server's address), so a key alone does not say where SCORE ends: it is
the shortest that the same evaluation knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

SUFFIXES = ("stderr", "missing", "retries", "change", "change_low", "change_high")
"""What follows a score's key where its value is no score of its own."""


class EvalName(NamedTuple):
    """One score of one evaluation set, or one of its parts: a tag's, or an entry of a reward that returns several."""

    eval_set: str
    score: str
    tag: str = ""

    @property
    def key(self) -> str:
        return "/".join(["eval", *filter(None, self)])


def eval_names(keys: Iterable[str]) -> list[EvalName]:
    """The scores among the names of metrics, in their order; those of parts of parts are left out."""
    found = [key.removeprefix("eval/").split("/") for key in keys if key.startswith("eval/")]
    known = {tuple(parts) for parts in found}
    names = []
    for parts in found:
        end = next((end for end in range(2, len(parts)) if tuple(parts[:end]) in known), len(parts))
        if len(parts) > 1 and parts[-1] not in SUFFIXES and end >= len(parts) - 1:
            names.append(EvalName(parts[0], "/".join(parts[1:end]), "".join(parts[end:])))
    return names
