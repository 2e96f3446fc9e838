"""Every prompt is shown to every reward before a run, so that none stops it, or scores nothing, when it is drawn.

A reward may have a method `check_row(prompt, metadata)`; a function gets one by the decorator `checks_rows`. It raises
UserError for a row that it cannot score, and returns what it may score otherwise than meant in a few words, or None.
A reward that asks a server has `check_every_row(prompts, metadata)` instead, which returns all of this as a list, the
UserErrors too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from dgpo.data.prompts import PromptSet
from dgpo.errors import UserError
from dgpo.rewards.base import Reward, check_metadata, title
from dgpo.rewards.builtin.weights import MissingFiles

RowCheck = Callable[[str, Mapping[str, Any]], str | None]
Verdict = UserError | str | None
"""Of a row: it cannot be scored, or a doubt, or nothing."""
SHOWN = 3
"""Kinds of doubts of one reward, and places of rows, that are told one by one."""


def checks_rows(check: RowCheck) -> Callable[[Reward], Reward]:
    """Decorator: `check` looks at every row before a run, see above."""

    def declare(reward: Reward) -> Reward:
        setattr(reward, "check_row", check)  # noqa: B010 (a protocol has no such field)
        return reward

    return declare


def check_rows(name: str, reward: Reward, prompts: PromptSet) -> list[str]:
    """Refuse rows that a reward cannot score, with their places. Returns its doubts, a line for each kind."""
    check_metadata(reward, prompts.metadata, prompts.place)
    refused: list[tuple[str, UserError]] = []
    doubts: dict[str, list[str]] = {}  # in words -> places
    for index, found in enumerate(verdicts(reward, prompts.prompts, prompts.metadata, prompts.place)):
        if isinstance(found, UserError):
            refused.append((prompts.place(index), found))
        elif found:
            doubts.setdefault(found, []).append(prompts.place(index))
    if refused:
        (place, error), others = refused[0], [place for place, _ in refused[1:]]
        more = f" {len(others)} more cannot be scored either: {_some(others)}" if others else ""
        raise UserError(f"{place}: {error}.{more}") from error
    return _lines(name, doubts, len(prompts))


def can_check(reward: Reward) -> bool:
    """Whether a reward looks at rows before a run."""
    return hasattr(reward, "check_every_row") or hasattr(reward, "check_row")


def verdicts(
    reward: Reward,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    place: Callable[[int], str] = "prompt {}".format,
) -> list[Verdict]:
    """What a reward says of each row before a run. place: names a row by its index"""
    of_all = getattr(reward, "check_every_row", None)
    if of_all is not None:
        return of_all(prompts, metadata)
    check: RowCheck | None = getattr(reward, "check_row", None)
    return [] if check is None else [_verdict(reward, check, *row, place) for row in zip(count(), prompts, metadata)]


def _verdict(
    reward: Reward, check: RowCheck, index: int, prompt: str, metadata: Mapping[str, Any], place: Callable[[int], str]
) -> Verdict:
    cannot = f"{place(index)}: the reward {title(reward)} cannot be asked: its check_row"
    try:
        doubt: object = check(prompt, metadata)
    except MissingFiles:  # that says nothing of the row
        raise
    except UserError as error:
        return error
    except Exception as error:
        raise UserError(f"{cannot} raised {type(error).__name__}: {error}, for the prompt {prompt!r}") from error
    if doubt is None or isinstance(doubt, str):
        return doubt
    raise UserError(f"{cannot} returned {doubt!r}, for the prompt {prompt!r}; it must return a text or None")


def _lines(name: str, doubts: Mapping[str, Sequence[str]], count: int) -> list[str]:
    ordered = sorted(doubts.items(), key=lambda doubt: -len(doubt[1]))
    lines = [f"{name}, {len(places)} of {count} prompts: {doubt} ({_some(places)})" for doubt, places in ordered]
    if len(lines) > SHOWN:
        rest = [place for _, places in ordered[SHOWN:] for place in places]
        lines[SHOWN:] = [f"{name}, {len(rest)} more of {count} prompts are doubtful in other ways ({_some(rest)})"]
    return lines


def _some(places: Sequence[str]) -> str:
    return ", ".join(places[:SHOWN]) + (", ..." if len(places) > SHOWN else "")


def cut_doubt(prompt: str, tokenizer: Callable[[], Any], length: int) -> str | None:
    """The doubt about a prompt that is longer than the `length` tokens that a text encoder reads.

    The tokenizer is loaded only for prompts with more bytes than that, since every token has one at least.
    """
    if len(prompt.encode()) + 2 <= length or len(tokenizer()(prompt, verbose=False)["input_ids"]) <= length:
        return None
    return f"longer than the {length} tokens that its text encoder reads, which does not see the end"
