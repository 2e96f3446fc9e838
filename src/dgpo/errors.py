"""Errors with one message that says what was given, why it cannot work and what would; and warnings of a command."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints the message alone and exits with code 2."""


class NotHere(UserError):
    """A relative path, or a module, leads nowhere from the current folder, and may do so from another one."""


class RunFailed(RuntimeError):
    """What ended a run or a command midway. The command line prints the message alone and exits with code 1."""

    plain: str | None = None
    """The message without what was saved of the run, where that was added."""


class NonFiniteError(RunFailed):
    """A loss, a gradient, a weight, a latent or a picture became NaN or infinite."""


class RankLost(RunFailed):
    """Another process of the run has died, hangs or cannot be reached."""


class Extra:
    """`with Extra("serve", "a server"): import x` tells which extra to install where a module is missing."""

    def __init__(self, name: str, user: str) -> None:
        self._name, self._user = name, user

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImportError):
            raise UserError(f"{self._user} needs {error.name}: pip install 'dgpo[{self._name}]'") from error


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """'Did you mean x? Known: a, b, x.' for an unknown name; shorter where nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(known)}."


def warn(texts: Iterable[str]) -> None:
    """Say what a command goes on in spite of, apart from what it prints; a run's console has its own."""
    for text in texts:
        print(f"dgpo: warning: {text}", file=sys.stderr)
