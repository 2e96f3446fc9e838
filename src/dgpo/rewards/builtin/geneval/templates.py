"""GenEval's six templates. Every prompt of a task over some classes has a number, so that lists are drawn by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dgpo.rewards.builtin.geneval.vocabulary import COLORS, COUNTS, RELATIONS, article, plural

Metadata = dict[str, Any]  # {"prompt", "tag", "include": [{"class", "count", "color"?, "position"?}], "exclude"?}


def single_object(name: str) -> Metadata:
    return _row("single_object", article(name), [_object(name)])


def two_object(one: str, other: str) -> Metadata:
    return _row("two_object", f"{article(one)} and {article(other)}", [_object(one), _object(other)])


def counting(name: str, count: int) -> Metadata:
    return _row(
        "counting", f"{COUNTS[count]} {plural(name)}", [_object(name, count)], exclude=[_object(name, count + 1)]
    )


def colors(name: str, color: str) -> Metadata:
    return _row("colors", f"{article(color)} {name}", [_object(name, color=color)])


def position(one: str, relation: str, other: str) -> Metadata:
    include = [_object(other), _object(one, position=[relation, 0])]
    return _row("position", f"{article(one)} {relation} {article(other)}", include)


def color_attr(one: str, color: str, other: str, other_color: str) -> Metadata:
    include = [_object(one, color=color), _object(other, color=other_color)]
    return _row("color_attr", f"{article(color)} {one} and {article(other_color)} {other}", include)


def number(kind: str, classes: Sequence[str]) -> int:
    """How many prompts of one kind these classes make. A person has no colour, in GenEval as here."""
    n, m, c = len(classes), len(_colorable(classes)), len(COLORS)
    return {
        "single_object": n,
        "two_object": n * (n - 1),
        "counting": n * len(COUNTS),
        "colors": m * c,
        "position": n * (n - 1) * len(RELATIONS),
        "color_attr": m * (m - 1) * c * (c - 1),
    }[kind]


def prompt(kind: str, classes: Sequence[str], index: int) -> Metadata:
    """The prompt of that number, 0 <= index < number(kind, classes)."""
    match kind:
        case "single_object":
            return single_object(classes[index])
        case "two_object":
            return two_object(*_pair(classes, index))
        case "counting":
            return counting(classes[index // len(COUNTS)], list(COUNTS)[index % len(COUNTS)])
        case "colors":
            return colors(_colorable(classes)[index // len(COLORS)], COLORS[index % len(COLORS)])
        case "position":
            one, other = _pair(classes, index // len(RELATIONS))
            return position(one, RELATIONS[index % len(RELATIONS)], other)
        case "color_attr":
            index, pair = divmod(index, len(COLORS) * (len(COLORS) - 1))
            (one, other), (color, other_color) = _pair(_colorable(classes), index), _pair(COLORS, pair)
            return color_attr(one, color, other, other_color)
    raise ValueError(kind)


def _pair(words: Sequence[str], index: int) -> tuple[str, str]:
    """Two different words; index counts the n (n - 1) ordered pairs."""
    first, second = divmod(index, len(words) - 1)
    return words[first], words[second + (second >= first)]


def _colorable(classes: Sequence[str]) -> list[str]:
    return [name for name in classes if name != "person"]


def _row(tag: str, what: str, include: list[dict[str, Any]], **more: Any) -> Metadata:
    return {"tag": tag, "include": include, **more, "prompt": f"a photo of {what}"}


def _object(name: str, count: int = 1, **attributes: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **attributes}
