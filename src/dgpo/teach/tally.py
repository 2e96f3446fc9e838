"""What the answers say of the model, and of those who gave them.

A win rate has Wilson's interval, which holds for few answers too. Agreement is counted over pairs of pictures that both
answers order: the share that they order alike, 1/2 by chance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from dgpo.teach.groups import BLIND, TRAIN, Group
from dgpo.teach.picks import AGAIN, Pick, Question

Z = 1.959963984540054  # of 95 %


class Share(NamedTuple):
    """A share of `of` cases with its 95 % interval. of 0: nothing is known."""

    share: float | None
    low: float
    high: float
    of: int


def wilson(hits: float, of: int) -> Share:
    """Wilson's interval (1927) of a share. hits: ties may count as a half"""
    if not of:
        return Share(None, 0.0, 1.0, 0)
    share, z = hits / of, Z * Z / of
    middle, half = (share + z / 2) / (1 + z), math.sqrt(share * (1 - share) * z + z * z / 4) / (1 + z)
    return Share(share, max(0.0, middle - half), min(1.0, middle + half), of)


def win_rate(groups: Mapping[int, Group], picks: Iterable[Pick]) -> Share:
    """How often the trained model's picture was preferred to the base model's; as good as each other is a half."""
    wins = [
        (rewards[now] > rewards[1 - now]) + (rewards[now] == rewards[1 - now]) / 2
        for pick in picks
        if pick.question.asked == BLIND
        and (group := groups.get(pick.question.group)) is not None
        and (now := group.now) is not None
        and (rewards := pick.choice.rewards(group.size)) is not None
    ]
    return wilson(sum(wins), len(wins))


def consistency(groups: Mapping[int, Group], picks: Mapping[Question, Pick]) -> dict[str, Share]:
    """who -> how far they order the same pictures alike when they are asked again."""
    found: dict[str, list[tuple[int, int]]] = {}
    for question, second in picks.items():
        first = picks.get(question._replace(asked=TRAIN))
        if question.asked == AGAIN and first and (group := groups.get(question.group)):
            found.setdefault(question.who, []).append(alike(first, second, group.size))
    return {who: _share(pairs) for who, pairs in found.items()}


def agreement(groups: Mapping[int, Group], picks: Mapping[Question, Pick]) -> Share:
    """How far different people order the same pictures alike."""
    answers: dict[int, list[Pick]] = {}
    for question, pick in picks.items():
        if question.asked != BLIND and question.asked != AGAIN:
            answers.setdefault(question.group, []).append(pick)
    return _share(
        alike(one, other, groups[number].size)
        for number, given in answers.items()
        if number in groups
        for one, other in combinations(given, 2)
        if one.question.who != other.question.who
    )


def alike(one: Pick, other: Pick, size: int) -> tuple[int, int]:
    """(pairs of pictures ordered alike, pairs that both order)."""
    mine, theirs = one.choice.rewards(size), other.choice.rewards(size)
    if mine is None or theirs is None:
        return 0, 0
    both = [
        (mine[i] - mine[j]) * (theirs[i] - theirs[j])
        for i, j in combinations(range(size), 2)
        if mine[i] != mine[j] and theirs[i] != theirs[j]
    ]
    return sum(product > 0 for product in both), len(both)


def people(picks: Mapping[Question, Pick]) -> dict[str, dict[str, Any]]:
    """who -> how many answers, and the median of seconds that one took."""
    seconds: dict[str, list[float]] = {}
    for question, pick in picks.items():
        seconds.setdefault(question.who, []).append(pick.seconds)
    return {who: {"answers": len(took), "seconds": statistics.median(took)} for who, took in seconds.items()}


def _share(pairs: Iterable[tuple[int, int]]) -> Share:
    together = [sum(column) for column in zip(*pairs)] or [0, 0]
    return wilson(together[0], together[1])
