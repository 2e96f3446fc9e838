"""The evaluation sets that a run takes from its own prompts.

`prompts:held_out` is a tenth of the different prompts, at least 4 and at most 32, and these never train. With fewer than
20 different prompts there is none to spare: `prompts:trained` is at most 32 of those that train, and says so by its
name. Which ones they are depends on nothing but their texts and the seed: those with the smallest hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.errors import UserError

HELD_OUT, TRAINED = "prompts:held_out", "prompts:trained"
AUTOMATIC = {"auto": "prompts"}
"""`eval_prompts` of a config that names none: `named` says which set it becomes."""
ENOUGH, FEWEST, MOST = 20, 4, 32


def named(eval_prompts: Mapping[str, str], prompts: PromptSet, may_hold_out: bool = True) -> dict[str, str]:
    """Put the set that these prompts allow in the place of the automatic one."""
    if eval_prompts != AUTOMATIC:
        return dict(eval_prompts)
    held_out = may_hold_out and len({*prompts.prompts}) >= ENOUGH
    return {"held_out": HELD_OUT} if held_out else {"trained": TRAINED}


def split(
    eval_prompts: Mapping[str, str],
    prompts: PromptSet,
    seed: int,
    read: Callable[[str], PromptSet] = load_prompts,
) -> tuple[PromptSet, dict[str, PromptSet]]:
    """The prompts that train, and the evaluation sets. read: reads those that come from elsewhere."""
    sources = named(eval_prompts, prompts)
    ranked = _by_hash(prompts.prompts, seed)
    held_out = set[str]()
    if HELD_OUT in sources.values():
        if len(ranked) < ENOUGH:
            raise UserError(
                f"{HELD_OUT} takes a tenth of the prompts out of training, and there are only {len(ranked)} different "
                f"ones; bring at least {ENOUGH}, or evaluate {TRAINED}"
            )
        held_out = {*ranked[: min(MOST, max(FEWEST, len(ranked) // 10))]}
    trained = {*[text for text in ranked if text not in held_out][:MOST]}
    own = {HELD_OUT: held_out, TRAINED: trained}
    train = prompts.subset(i for i, text in enumerate(prompts.prompts) if text not in held_out)
    sets = {name: _once(prompts, own[source]) if source in own else read(source) for name, source in sources.items()}
    return train, sets


def _by_hash(texts: Iterable[str], seed: int) -> list[str]:
    """The different texts, in an order that has nothing to do with theirs."""
    return sorted({*texts}, key=lambda text: (hashlib.sha256(f"{seed}\n{text}".encode()).digest(), text))


def _once(prompts: PromptSet, texts: set[str]) -> PromptSet:
    """The first row of each of these texts, in the order of the rows."""
    first = {text: i for i, text in reversed([*enumerate(prompts.prompts)]) if text in texts}
    return prompts.subset(sorted(first.values()))
