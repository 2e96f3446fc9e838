"""How well a picture follows its prompt: GenEval's rules (Ghosh et al. 2023) with partial credit and no free extras.

    credit = sum over requested objects of mean(it is there, its colour, its relation) / (requested + extra objects)

Only what is asked of an object enters its mean, and an object that is not there earns 0. Every object beyond the
requested ones is extra, known or not: GenEval charges for surplus only in its counting task, and a policy trained on
that learns to crowd its pictures. Credit is 1 exactly where nothing is missing, wrong or extra. A relation that holds
counts 1, else half the way from opposite to right: (1 + cos) / 2 of the angle between the objects' offset and the
direction asked for; it is asked of both objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dgpo.errors import UserError, did_you_mean
from dgpo.worlds.shapes.detector import Found
from dgpo.worlds.shapes.scenes import relation_holds
from dgpo.worlds.shapes.vocabulary import COLORS, RELATIONS, SHAPES

_TOWARD: dict[str, tuple[float, float]] = dict(zip(RELATIONS, ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))))
Entry = Mapping[str, Any]  # {"class", "count", "color"?, "position"?: [relation, index of the other entry]}


def credit(objects: Sequence[Found], include: Sequence[Entry]) -> float:
    """What a picture with these objects earns in [0, 1] for GenEval's `include`."""
    wanted = [index for index, entry in enumerate(include) for _ in range(_checked(entry).get("count", 1))]
    matches = _match([include[index] for index in wanted], objects)
    first = dict(zip(reversed(wanted), reversed(matches)))
    relations = [(i, *entry["position"]) for i, entry in enumerate(include) if "position" in entry]
    earned = 0.0
    for index, found in zip(wanted, matches):
        if found is None:
            continue
        parts = [1.0]
        if "color" in include[index]:
            parts.append(float(found.color == include[index]["color"]))
        parts += [_relation(first[i], first[j], name) for i, name, j in relations if index in (i, j)]
        earned += sum(parts) / len(parts)
    extra = len(objects) - sum(found is not None for found in matches)
    return earned / (len(wanted) + extra)


def follows(objects: Sequence[Found], include: Sequence[Entry]) -> bool:
    """Whether the picture holds exactly what is asked for."""
    return credit(objects, include) == 1.0


def _match(wanted: Sequence[Entry], objects: Sequence[Found]) -> list[Found | None]:
    """One object of the right class for each entry, each object once: those of the right colour first, then any."""
    left = sorted((o for o in objects if o.shape), key=lambda o: -o.score)
    matches: list[Found | None] = [None] * len(wanted)
    for by_color in (True, False):
        for place, entry in enumerate(wanted):
            fits = [
                o
                for o in left
                if o.shape == entry["class"] and (not by_color or o.color == entry.get("color", o.color))
            ]
            if matches[place] is None and fits:
                matches[place] = fits[0]
                left.remove(fits[0])
    return matches


def _relation(one: Found | None, other: Found | None, name: str) -> float:
    if one is None or other is None:
        return 0.0
    offset = one.center[0] - other.center[0], one.center[1] - other.center[1]
    if relation_holds(torch.tensor(offset), torch.tensor(RELATIONS.index(name))):
        return 1.0
    toward = _TOWARD[name]
    cosine = (offset[0] * toward[0] + offset[1] * toward[1]) / max(math.hypot(*offset), 1e-6)
    return (1 + cosine) / 2


def require_judgeable(include: Any) -> None:
    """Refuse an `include` that `credit` cannot judge."""
    if not isinstance(include, Sequence) or isinstance(include, str) or not include:
        raise UserError(f"include={include!r} asks for nothing; it must be a list of at least one entry of GenEval's")
    for place, entry in enumerate(include):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
            raise UserError(f'{entry!r} is no entry of include; each is an object such as {{"class": "circle"}}')
        count, position = entry.get("count", 1), entry.get("position", ("above", 1 - min(place, 1)))
        if type(count) is not int or count < 1:
            raise UserError(f"count={count!r} of {entry['class']!r} must be a whole number, at least 1")
        others = [other for other in range(len(include)) if other != place]
        fits = isinstance(position, Sequence) and not isinstance(position, str) and len(position) == 2
        if not fits or ("position" in entry and position[1] not in others):
            raise UserError(f"position={position!r} of entry {place} must be [relation, index of another entry]")
        _checked(entry)


def _checked(entry: Entry) -> Entry:
    relation = entry["position"][0] if "position" in entry else None
    asked = ("class", entry["class"], SHAPES), ("color", entry.get("color"), COLORS), ("position", relation, RELATIONS)
    for key, value, known in asked:
        if value is not None and value not in known:
            raise UserError(f"the shapes world cannot judge the {key} {value!r}. {did_you_mean(str(value), known)}")
    return entry
