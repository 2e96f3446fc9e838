"""The evaluation sets that a run takes from its own prompts.

`prompts:held_out` is a tenth of the different prompts, at least 4 and at most 32, and these never train. With fewer
than 20 different prompts there is none to spare: `prompts:trained` is at most 32 of those that train, and its name says
so. Which ones they are depends on nothing but their texts and the seed: those whose hashes are smallest. The set
`auto: prompts`, alone or beside others, is the one of the two that the prompts allow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from dgpo.config import HELD_OUT, OWN_SETS, TRAINED, Config, has_automatic, in_place_of_automatic
from dgpo.data.groups import GroupDataset
from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.errors import UserError

ENOUGH, FEWEST, MOST = 20, 4, 32


class Parted(NamedTuple):
    """What a run does with which prompts."""

    trained: PromptSet
    evaluated: dict[str, PromptSet]  # empty where the run never evaluates
    sources: dict[str, str]  # `eval_prompts`, with the automatic set under its own name


def part(config: Config, prompts: PromptSet, read: Callable[[str], PromptSet] = load_prompts) -> Parted:
    """Part the prompts of a run, or of its dataset. read: reads evaluation sets that come from elsewhere."""
    sources, ranked = _named(config, prompts), _by_hash(prompts.prompts, config.seed)
    held_out = set[str]()
    if HELD_OUT in sources.values():
        _require_enough(config, len(ranked))
        held_out = {*ranked[: min(MOST, max(FEWEST, len(ranked) // 10))]}
    shown = {*[text for text in ranked if text not in held_out][:MOST]}
    own = {HELD_OUT: held_out, TRAINED: shown}
    trained = prompts.subset(i for i, text in enumerate(prompts.prompts) if text not in held_out)
    evaluated = {
        name: _once(prompts, own[source]) if source in own else read(source)
        for name, source in (sources if config.eval_every else {}).items()
    }
    return Parted(trained, evaluated, sources)


def evaluation_sets(config: Config, trained: Config | None = None) -> dict[str, PromptSet]:
    """Read the evaluation sets of a config outside of a run. Its own prompts are read only where a set is of them.

    trained: of the run that is evaluated, if any: its prompts and its seed say which prompts it held out
    """
    if not has_automatic(config.eval_prompts) and not {HELD_OUT, TRAINED} & {*config.eval_prompts.values()}:
        return {name: load_prompts(source) for name, source in config.eval_prompts.items()}
    trained = trained or config
    own = load_prompts(trained.prompts) if trained.offline is None else GroupDataset(trained.offline).prompts
    return part(replace(config, eval_every=1, seed=trained.seed, offline=trained.offline), own).evaluated


def trained_prompts(config: Config) -> PromptSet:
    """Read the prompts that a run trains on: those of its config without the held-out ones. Reads no other list."""
    return part(config, load_prompts(config.prompts), read=lambda source: PromptSet([], [])).trained


def _named(config: Config, prompts: PromptSet) -> dict[str, str]:
    """Put the set that these prompts allow in the place of the automatic one."""
    if not has_automatic(config.eval_prompts):
        return config.eval_prompts
    own = _automatic(config, prompts)
    for name, source in own.items():
        if config.eval_prompts.get(name, source) != source:
            raise UserError(
                f"eval_prompts has {name}={config.eval_prompts[name]} beside auto=prompts, which is called {name} as "
                "well; give the other set another name"
            )
    sources = in_place_of_automatic(own, config.eval_prompts)
    replace(config, eval_prompts=sources)  # refuses eval_images of a set that these prompts have not
    return sources


def _automatic(config: Config, prompts: PromptSet) -> dict[str, str]:
    """The automatic set under its own name; none where a dataset brings its own rewards."""
    if not config.rewards:
        return {}
    spare = bool(config.eval_every) and config.offline is None and len({*prompts.prompts}) >= ENOUGH
    name = "held_out" if spare else "trained"
    return {name: OWN_SETS[name]}


def _require_enough(config: Config, count: int) -> None:
    if config.offline is not None:
        raise UserError(f"{HELD_OUT} takes prompts out of training, and offline trains all groups; evaluate {TRAINED}")
    if count < ENOUGH:
        raise UserError(
            f"{HELD_OUT} takes a tenth of the prompts out of training, and there are only {count} different ones; "
            f"bring at least {ENOUGH}, or evaluate {TRAINED}"
        )


def _by_hash(texts: Iterable[str], seed: int) -> list[str]:
    """The different texts, in an order that has nothing to do with theirs."""
    return sorted({*texts}, key=lambda text: hashlib.sha256(f"{seed}\n{text}".encode()).digest())


def _once(prompts: PromptSet, texts: set[str]) -> PromptSet:
    """The first row of each of these texts, in the order of the rows."""
    first = {text: i for i, text in reversed([*enumerate(prompts.prompts)]) if text in texts}
    return prompts.subset(sorted(first.values()))
