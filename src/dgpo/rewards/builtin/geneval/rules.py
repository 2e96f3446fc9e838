"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513): from the objects seen in a picture to its scores.

Objects of a class are those whose confidence is above 0.3, above 0.9 for a prompt that counts, the 16 best of them.
Suppression of overlapping boxes is off, as in GenEval's evaluation (`max_overlap` 1).

    accuracy = 1 if every entry has at least `count` objects, its `count` most confident have the colour asked for and
               stand in the relation asked for, and no `exclude` is met; else 0             (the benchmark's own figure)
    dense    = mean over all that is asked of a number at most 1
    strict   = 1 if each of these numbers is 1, else 0

The dense score is Flow-GRPO's (Liu et al. 2025, arXiv 2505.05470; DGPO trains on it), for N objects found where n are
asked for:

    for an entry           1 - |N - n| / n     negative for crowds
    for its colour         (objects of that colour) / n if N = n, else 0
    for its relation       1 if N = n, the entry it refers to is met, and all pairs stand so, else 0

so that extra objects cost, which the benchmark forgives outside of counting. Deviations: (a) Flow-GRPO's code adds a 1
after the 0 of a wrong relation, so that such a picture earns 3/4; here 2/3; (b) an entry that asks for colour and
relation is always judged in both (no prompt of GenEval has such an entry); (c) an `exclude` of a class that is not
included counts as one more number, 1 or 0, where Flow-GRPO's code looks at `include` only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from dgpo.rewards.builtin.geneval.request import MAX_OBJECTS, Entry, Request

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
POSITION_MARGIN = 0.1

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels; y points down


class Detection(NamedTuple):
    """One object: class, confidence in [0, 1], box; its pixels and its colour where they are known."""

    label: str
    score: float
    box: Box
    mask: Tensor | None = None  # (H, W) bool
    color: str | None = None


Objects = dict[str, list[Detection]]  # of each class, the most confident first


def keep(detections: Iterable[Detection], tag: str, max_overlap: float = 1.0) -> Objects:
    """The detections that count as objects. max_overlap: a box that covers a better one this far (IoU) is dropped."""
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    objects: Objects = {}
    for one in sorted(detections, key=lambda one: -one.score):
        if one.score > least:
            objects.setdefault(one.label, []).append(one)
    return {label: _without_overlap(same[:MAX_OBJECTS], max_overlap) for label, same in objects.items()}


def terms(objects: Objects, request: Request) -> list[float]:
    """The numbers whose mean is the dense score; every one is 1 where the picture holds what is asked, and no more."""
    numbers: list[float] = []
    met: list[bool] = []
    for entry in request.include:
        parts = _judge(objects, entry, request, met)
        numbers += parts
        met.append(all(part == 1 for part in parts))
    included = {entry.label for entry in request.include}
    return numbers + [float(_absent(objects, entry)) for entry in request.exclude if entry.label not in included]


def dense(objects: Objects, request: Request) -> float:
    numbers = terms(objects, request)
    return sum(numbers) / len(numbers)


def strict(objects: Objects, request: Request) -> float:
    return float(all(number == 1 for number in terms(objects, request)))


def accuracy(objects: Objects, request: Request) -> float:
    """The benchmark's verdict: the strict one on the `count` most confident objects of each entry, and `exclude`."""
    best = {entry.label: objects.get(entry.label, [])[: entry.count] for entry in request.include}
    right = all(number == 1 for number in terms(best, request._replace(exclude=())))
    return float(right and all(_absent(objects, entry) for entry in request.exclude))


def relations(one: Box, other: Box) -> set[str]:
    """Where `one` is, seen from `other`: none, one or two of left of, right of, above and below.

    The offset of the centres counts beyond a tenth of the boxes' summed widths (heights), and in a direction that takes
    more than half of the whole offset.
    """
    (ax, ay, a_width, a_height), (bx, by, b_width, b_height) = _centered(one), _centered(other)
    x, y = _beyond(ax - bx, a_width + b_width), _beyond(ay - by, a_height + b_height)
    if abs(x) < 1e-3 and abs(y) < 1e-3:
        return set()
    length = math.hypot(ax - bx, ay - by)
    shares = {"left of": -x / length, "right of": x / length, "above": -y / length, "below": y / length}
    return {name for name, share in shares.items() if share > 0.5}


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes of whole pixels, both ends counted."""
    shared = _area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    return shared / (_area(one) + _area(other) - shared)


def _judge(objects: Objects, entry: Entry, request: Request, met: Sequence[bool]) -> list[float]:
    """What an entry asks for: its number of objects, their colour, their relation to an entry before it."""
    found = objects.get(entry.label, [])
    exact = len(found) == entry.count
    parts = [1 - abs(entry.count - len(found)) / entry.count]
    if entry.color is not None:
        parts.append(sum(one.color == entry.color for one in found) / entry.count if exact else 0.0)
    if entry.relation is not None and entry.target is not None:
        others = objects.get(request.include[entry.target].label, [])
        holds = all(entry.relation in relations(one.box, other.box) for one in found for other in others)
        parts.append(float(exact and met[entry.target] and holds))
    return parts


def _absent(objects: Objects, entry: Entry) -> bool:
    return len(objects.get(entry.label, [])) < entry.count


def _without_overlap(same: list[Detection], max_overlap: float) -> list[Detection]:
    kept: list[Detection] = []
    for one in same:
        if max_overlap == 1 or all(overlap(one.box, better.box) < max_overlap for better in kept):
            kept.append(one)
    return kept


def _centered(box: Box) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2, abs(right - left), abs(bottom - top)


def _beyond(offset: float, extent: float) -> float:
    return math.copysign(max(abs(offset) - POSITION_MARGIN * extent, 0.0), offset)


def _area(box: Box) -> float:
    return max(box[2] - box[0] + 1, 0.0) * max(box[3] - box[1] + 1, 0.0)
