"""What a prompt asks for: GenEval's metadata, read and checked before any network runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from dgpo.errors import UserError, did_you_mean
from dgpo.rewards.builtin.geneval.vocabulary import COLORS, RELATIONS

MAX_OBJECTS = 16
"""Objects of one class that are looked at in a picture."""


class Entry(NamedTuple):
    """`count` objects of one class, of one colour, all in one relation to the objects of an earlier entry."""

    label: str
    count: int = 1
    color: str | None = None
    relation: str | None = None
    target: int | None = None  # index of the entry that `relation` is to


class Request(NamedTuple):
    tag: str
    include: tuple[Entry, ...]
    exclude: tuple[Entry, ...] = ()  # fewer than `count` of each


def read(row: Mapping[str, Any], labels: Collection[str]) -> Request:
    """A prompt's metadata {"tag", "include", "exclude"?}; `labels` are the classes that can be seen.

    A key that is None counts as absent: so do tables write rows that differ in their keys.
    """
    include = tuple(_entry(item, place, labels) for place, item in enumerate(row.get("include") or ()))
    exclude = tuple(_entry(item, 0, labels) for item in row.get("exclude") or ())
    names = [entry.label for entry in include]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"GenEval's rules judge every class of a prompt once; include names {', '.join(names) or 'none'}. Give one "
            "entry for each class, with its count"
        )
    return Request(str(row["tag"]), include, exclude)


def _entry(item: Mapping[str, Any], place: int, labels: Collection[str]) -> Entry:
    if not isinstance(item, Mapping) or item.get("class") is None:
        raise UserError(f'{item!r} is no entry of GenEval\'s metadata; each is an object such as {{"class": "cat"}}')
    label, color, position = item["class"], item.get("color"), item.get("position")
    _known("class", label, labels)
    count = 1 if item.get("count") is None else item["count"]
    if not isinstance(count, int) or not 1 <= count <= MAX_OBJECTS:
        raise UserError(f"GenEval's rules count from 1 to {MAX_OBJECTS} objects of a class; got {count!r} of {label!r}")
    if color is not None:
        _known("color", color, COLORS)
    relation, target = (None, None) if position is None else _position(position, place)
    return Entry(label, count, color, relation, target)


def _position(position: Sequence[Any], place: int) -> tuple[str, int]:
    if isinstance(position, str) or not isinstance(position, Sequence) or len(position) != 2:
        raise UserError(f"the position {position!r} must be [relation, index of an earlier entry of include]")
    relation, target = position[0], position[1]
    _known("relation", relation, RELATIONS)
    if not str(target).isdecimal() or int(target) >= place:  # a table with one type a column keeps the index as text
        raise UserError(f"entry {place} of include is {relation!r} entry {target!r}; name an entry before it, from 0")
    return relation, int(target)


def _known(what: str, given: Any, known: Collection[str]) -> None:
    if given not in known:
        raise UserError(f"GenEval's rules cannot judge the {what} {given!r}. {did_you_mean(str(given), known)}")
