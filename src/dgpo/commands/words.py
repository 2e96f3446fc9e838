"""The words of a command line before they are parsed: what is named first, and options that are no fields."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from dgpo.errors import UserError

HELP = ("-h", "--help")
HELP_ALL = "--help-all"


class ParserExit(Exception):
    """The parser has shown its help, or what it cannot parse, and the command ends with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def announce(command: str, given: list[str]) -> None:
    """Say at once that a command has begun, where PyTorch, whose import takes seconds, is still to be imported."""
    quiet = "torch" in sys.modules or {*HELP, HELP_ALL} & {*given} or os.environ.get("RANK", "0") != "0"
    if not quiet:
        print(f"dgpo {command}: starting; importing PyTorch takes some seconds", file=sys.stderr, flush=True)


def take_name(given: list[str]) -> tuple[str, list[str]]:
    """Split what is named before the options, empty if nothing is, from the rest."""
    return (given[0], given[1:]) if given and not given[0].startswith("-") else ("", given)


def take_option(given: list[str], name: str, needs: str) -> tuple[str | None, list[str]]:
    """Take the value of one option out of the command line; `needs` says what stands behind it."""
    for i, word in enumerate(given):
        if word == name and i + 1 < len(given):
            return given[i + 1], given[:i] + given[i + 2 :]
        if word == name:
            raise UserError(f"{name} needs {needs}")
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1], given[:i] + given[i + 1 :]
    return None, given


def values_of(given: Iterable[str], option: str) -> list[str]:
    """The words behind an option that takes several."""
    words: list[str] = []
    within = False
    for word in given:
        if word.startswith("--"):
            named, _, word = word.partition("=")
            within = named == option
        words += [word] if within and word else []
    return words


def named_fields(given: Iterable[str]) -> list[str]:
    """The fields that options name, such as lora.rank for --lora.rank=8."""
    return [word[2:].partition("=")[0].replace("-", "_") for word in given if word.startswith("--")]


def flag(field: str) -> str:
    """The option of a field."""
    return f"--{field.replace('_', '-')}"


def take_flag(given: list[str], name: str) -> tuple[bool, list[str]]:
    """Take a word that has no value out of the command line, and say whether it was there."""
    return name in given, [word for word in given if word != name]
