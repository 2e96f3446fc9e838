"""Names of evaluation metrics: `eval/SET/SCORE`, `eval/SET/SCORE/TAG` for the prompts of one tag, and notes on it.

The name of a reward may hold slashes itself (a server's address), so a key alone does not say where SCORE ends: it is
the shortest that the same evaluation knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

FORWARDS = "train/forwards"
"""What training has cost so far, in network forwards. Rows of evaluations have it too."""

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


def without_repeats(
    names: Iterable[EvalName], rewards: Mapping[str, float], values: Callable[[str], object]
) -> list[EvalName]:
    """Leave out the scores that show a number a second time.

    `reward` repeats the only trained reward where its weight is 1, and a tag that is the only one repeats its score.
    rewards: name -> weight of what is trained; values: what was logged under a key
    """
    names = list(names)
    (only, weight), *others = [*rewards.items()] or [("", 0.0)]

    def repeats(name: EvalName) -> bool:
        alone = name.tag and sum(other[:2] == name[:2] and other.tag != "" for other in names) == 1
        summed = name.score == "reward" and weight == 1 and not others
        origins = [name._replace(tag="")] * bool(alone) + [name._replace(score=only)] * summed
        return any(origin in names and values(origin.key) == values(name.key) for origin in origins)

    return [name for name in names if not repeats(name)]
