"""GenEval-style prompts with metadata: training and test lists from templates, and the official 553 of the benchmark.

The protocol is Flow-GRPO's (Liu et al. 2025, arXiv 2505.05470), which DGPO's GenEval runs follow: GenEval's templates
over COCO's classes, tasks mixed position : counting : color_attr : colors : two_object = 7 : 5 : 3 : 1 : 1, and no
training prompt that says the same as a test prompt in another order ("A and B", "B and A"; here also "A left of B",
"B right of A"). Splits:

- `train`: 60 classes; no scene of `test` or of the benchmark, and so no single object, which the benchmark has all;
- `test`: the same classes, other scenes: one in five of what can be said, at most 100 a task;
- `unseen`: prompts whose objects never occur in `train`, the other 20 classes, at most 100 a task;
- `benchmark`: GenEval's own list over all 80 classes.

Deviations: Flow-GRPO trains on all 80 classes for its main figure and on 60 only where it tests generalisation; here
`train` always leaves out the same 20. Its 50,000 prompts are drawn at random, with repeats in the small tasks; here a
task goes through all its scenes before one is repeated. Named kinds (`geneval:train:counting,colors`) weigh alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from typing import Any

import torch

from dgpo.core import seeds
from dgpo.errors import UserError, did_you_mean
from dgpo.rewards.builtin.geneval import templates
from dgpo.rewards.builtin.geneval.benchmark import benchmark
from dgpo.rewards.builtin.geneval.templates import Metadata
from dgpo.rewards.builtin.geneval.vocabulary import CLASSES, KINDS, UNSEEN_CLASSES

SPLITS = ("train", "test", "unseen", "benchmark")
SHARES = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
TRAIN_SIZE = 3400  # prompts in the list of `train`, rounded down to whole rounds of SHARES
TEST_SIZE = 100  # prompts of each kind in `test` and `unseen`, fewer where a kind has fewer


def load(split: str, kinds: Iterable[str] | None = None) -> list[Metadata]:
    """Prompts with metadata {"prompt", "tag", "include", "exclude"?}, the same on every machine; kinds interleaved."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r} of GenEval's prompts. {did_you_mean(split, SPLITS)}")
    kinds = tuple(kinds) if kinds else None
    chosen = kinds or tuple(SHARES if split == "train" else KINDS)
    for kind in chosen:
        if kind not in KINDS:
            raise UserError(f"unknown kind of prompt {kind!r}. {did_you_mean(kind, KINDS)}")
    if split == "benchmark":
        return [row for row in benchmark() if row["tag"] in chosen]
    if split == "train":
        return _training({kind: SHARES[kind] if kinds is None else 1 for kind in chosen})
    fits = _held_out if split == "test" else lambda row: True
    columns = [list(_scenes(split, kind, TEST_SIZE, fits)) for kind in chosen]
    return [row for rows in zip_longest(*columns) for row in rows if row]


def scene(row: Metadata) -> tuple[Any, ...]:
    """What a prompt asks to see, the same for prompts that say it in another order."""
    include = row["include"]
    entries = tuple(sorted((entry["class"], entry["count"], entry.get("color", "")) for entry in include))
    relations = [
        (entry["position"][0], entry["class"], include[0]["class"]) for entry in include if "position" in entry
    ]
    return entries, tuple(_forward(*relation) for relation in relations)


def _forward(relation: str, one: str, other: str) -> tuple[str, str, str]:
    opposite = {"right of": "left of", "below": "above"}.get(relation)
    return (opposite, other, one) if opposite else (relation, one, other)


def _training(shares: dict[str, int]) -> list[Metadata]:
    """Rounds of sum(shares) prompts; a kind with too few scenes begins anew."""
    rounds = TRAIN_SIZE // sum(shares.values())
    banned = {scene(row) for row in benchmark()}
    fits = lambda row: not _held_out(row) and scene(row) not in banned
    columns = {kind: list(_scenes("train", kind, rounds * share, fits)) for kind, share in shares.items()}
    for kind in [kind for kind, rows in columns.items() if not rows]:
        raise UserError(f"geneval:train has no prompt of the kind {kind}: all are prompts of GenEval's benchmark")
    slots = [(part / share, kind) for kind, share in shares.items() for part in range(share)]
    order = [kind for _, kind in sorted(slots, key=lambda slot: slot[0])]
    taken = dict.fromkeys(shares, 0)
    rows = []
    for kind in order * rounds:
        rows.append(columns[kind][taken[kind] % len(columns[kind])])
        taken[kind] += 1
    return rows


def _scenes(split: str, kind: str, size: int, fits: Callable[[Metadata], bool]) -> Iterator[Metadata]:
    """Up to `size` prompts of different scenes that fit, in random order."""
    classes = UNSEEN_CLASSES if split == "unseen" else tuple(name for name in CLASSES if name not in UNSEEN_CLASSES)
    number = templates.number(kind, classes)
    order = torch.randperm(number, generator=seeds.generator(0, f"geneval/{split}/{kind}")).tolist()
    return islice(_distinct(row for row in (templates.prompt(kind, classes, i) for i in order) if fits(row)), size)


def _distinct(rows: Iterable[Metadata]) -> Iterator[Metadata]:
    seen = set()
    for row in rows:
        if (said := scene(row)) not in seen:
            seen.add(said)
            yield row


def _held_out(row: Metadata) -> bool:
    """One scene in five, told by a hash of its words."""
    return hashlib.sha256(repr(scene(row)).encode()).digest()[0] % 5 == 0
