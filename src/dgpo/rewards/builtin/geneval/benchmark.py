"""GenEval's official 553 prompts, drawn anew as its authors drew them: numpy's default generator, seed 43.

Nothing is shipped: the list follows from the templates and the order of the draws, and its hash is checked against that
of the published `evaluation_metadata.jsonl`, so that a numpy that draws other numbers is noticed.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import numpy as np

from dgpo.errors import UserError
from dgpo.rewards.builtin.geneval import templates
from dgpo.rewards.builtin.geneval.templates import Metadata
from dgpo.rewards.builtin.geneval.vocabulary import CLASSES, COLORS, RELATIONS

_PUBLISHED = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"


def benchmark() -> list[Metadata]:
    """All 553, in the published order: 80 single objects, then at most 100 of each other task."""
    return json.loads(_text())


@lru_cache(1)
def _text() -> str:
    rows = {json.dumps(row): row for row in _draws(np.random.default_rng(43))}
    lines = "".join(f"{line}\n" for line in rows)
    if hashlib.sha256(lines.encode()).hexdigest() != _PUBLISHED:
        raise UserError(
            f"numpy {np.__version__} does not draw GenEval's published prompts. Give its evaluation_metadata.jsonl in "
            "place of geneval:benchmark, and another numpy for geneval:train, which leaves these prompts out"
        )
    return json.dumps(list(rows.values()))


def _draws(rng: np.random.Generator) -> list[Metadata]:
    """With repeats, which are dropped afterwards. The order of the draws is part of the list."""
    pair = lambda words: (words[i] for i in rng.choice(len(words), size=2, replace=False))
    one_of = lambda words: words[rng.choice(len(words))]
    colorable = CLASSES[1:]  # all but the person
    rows = [templates.single_object(CLASSES[i]) for i in rng.choice(len(CLASSES), size=len(CLASSES), replace=False)]
    rows += [templates.two_object(*pair(CLASSES)) for _ in range(100)]
    rows += [templates.counting(one_of(CLASSES), int(rng.integers(2, 4, endpoint=True))) for _ in range(100)]
    rows += [templates.colors(one_of(colorable), one_of(COLORS)) for _ in range(100)]
    for _ in range(100):
        one, other = pair(CLASSES)
        rows.append(templates.position(one, one_of(RELATIONS), other))
    for _ in range(100):
        (one, other), (color, other_color) = pair(colorable), pair(COLORS)
        rows.append(templates.color_attr(one, color, other, other_color))
    return rows
