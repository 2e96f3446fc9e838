"""Prompts of the shapes world: GenEval's six tasks (Ghosh et al. 2023), in GenEval's metadata schema.

All prompts of the world can be listed (about 1,900). Some combinations are held out from reinforcement learning, so
that `unseen` tells whether a model learned to follow prompts or learned its prompts. Pretraining sees them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations, product
from typing import Any

import torch

from dgpo.core import seeds
from dgpo.errors import UserError, did_you_mean
from dgpo.worlds.shapes.vocabulary import COLORS, COUNTS, KINDS, RELATIONS, SHAPES, plural

Metadata = dict[str, Any]  # {"prompt", "tag", "include": [{"class", "count", "color"?, "position"?}]}

SPLIT_SIZES = {"train": 96, "seen": 16, "unseen": 16}  # prompts of each kind


def all_prompts(kind: str) -> list[Metadata]:
    """Every prompt of one kind, in a fixed order."""
    pairs = list(permutations(SHAPES, 2))
    match kind:
        case "single_object":
            return [_prompt(kind, f"a {s}", [_object(s)]) for s in SHAPES]
        case "two_object":
            return [_prompt(kind, f"a {a} and a {b}", [_object(a), _object(b)]) for a, b in pairs]
        case "counting":
            return [
                _prompt(kind, f"{word} {plural(s)}", [_object(s, count=n)])
                for s, (n, word) in product(SHAPES, COUNTS.items())
            ]
        case "colors":
            return [_prompt(kind, f"{_a(c)} {s}", [_object(s, color=c)]) for s, c in product(SHAPES, COLORS)]
        case "position":
            return [
                _prompt(kind, f"a {a} {r} a {b}", [_object(b), _object(a, position=[r, 0])])
                for (a, b), r in product(pairs, RELATIONS)
            ]
        case "color_attr":
            return [
                _prompt(kind, f"{_a(c)} {a} and {_a(d)} {b}", [_object(a, color=c), _object(b, color=d)])
                for (a, b), (c, d) in product(pairs, permutations(COLORS, 2))
            ]
    raise UserError(f"unknown kind of prompt {kind!r}. {did_you_mean(kind, KINDS)}")


def held_out(metadata: Metadata) -> bool:
    """Whether a prompt uses a combination that reinforcement learning must not see.

    Eight of 48 colour-shape pairs, four of 18 count-shape pairs, 24 of 120 relations, six of 30 pairs of shapes.
    """
    objects = metadata["include"]
    shapes = [SHAPES.index(o["class"]) for o in objects]
    match metadata["tag"]:
        case "two_object":
            return (shapes[1] - shapes[0]) % 6 == 2
        case "counting":
            return (shapes[0], objects[0]["count"]) in {(0, 3), (2, 4), (3, 2), (5, 3)}
        case "position":
            relation = RELATIONS.index(objects[1]["position"][0])
            return (shapes[0] + 2 * shapes[1] + relation) % 5 == 0
        case "colors" | "color_attr":
            colors = [list(COLORS).index(o["color"]) for o in objects]
            return any((c + 2 * s) % 6 == 5 for c, s in zip(colors, shapes))
    return False


def load(split: str, kinds: Iterable[str] | None = None) -> list[Metadata]:
    """A list of prompts with metadata, the same on every machine.

    `train` and `seen` avoid the held-out combinations, `unseen` has only those. Each kind has the same number of
    prompts (a kind with too few repeats them), drawn without replacement and interleaved.
    """
    if split not in SPLIT_SIZES:
        raise UserError(f"unknown split {split!r} of the shapes world. {did_you_mean(split, SPLIT_SIZES)}")
    kinds = tuple(kinds or KINDS)
    columns = [column for kind in kinds if (column := _column(split, kind))]
    if not columns:
        raise UserError(f"the {split} list has no prompt of the kinds {', '.join(kinds)}")
    return [row for rows in zip(*columns) for row in rows]


def _column(split: str, kind: str) -> list[Metadata]:
    pool = [p for p in all_prompts(kind) if held_out(p) == (split == "unseen")]
    order = torch.randperm(len(pool), generator=seeds.generator(0, f"shapes/{kind}")).tolist()
    size = SPLIT_SIZES[split]
    if split == "seen":  # from the far end: apart from the train list wherever the kind has enough prompts
        order = order[::-1]
    return [pool[order[i % len(pool)]] for i in range(size)] if pool else []


def _prompt(tag: str, text: str, include: list[dict[str, Any]]) -> Metadata:
    return {"prompt": text, "tag": tag, "include": include}


def _object(shape: str, count: int = 1, **attributes: Any) -> dict[str, Any]:
    return {"class": shape, "count": count, **attributes}


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
