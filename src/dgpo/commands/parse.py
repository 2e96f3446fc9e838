"""Options of a command are the fields of a dataclass: tyro reads them and writes their help.

A field's own UserError comes out as itself, an unknown one with the nearest name, and help can be folded to the fields
that a command reads.
"""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import redirect_stderr
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from dgpo.commands.words import HELP, HELP_ALL, ParserExit
from dgpo.errors import UserError
from dgpo.utils import fields

T = TypeVar("T")
REGISTRY = ConstructorRegistry()


def parse(default: T, given: list[str], usage: str, about: str, shown: Collection[str] | None = None) -> T:
    """Return `default` with the fields that are given, or show the help and raise ParserExit.

    shown: the fields in the help, to which --help-all adds the rest; None: all
    """
    _require_once(given)
    if shown is not None and HELP_ALL in given:
        given = [HELP[1] if word == HELP_ALL else word for word in given]
    elif shown is not None and any(word in HELP for word in given):
        command = " ".join(usage.split()[:2])
        about += f"\n\nOther fields of dgpo train that it reads may be given too; {command} {HELP_ALL} shows all."
        default = _folded(default, shown)
    value, unknown = _read(default, _switched_on(default, given), usage, about)
    for word in unknown:
        if word.startswith("--"):
            raise fields.unknown(default, word[2:].partition("=")[0].replace("-", "_"))
        raise UserError(f"{word!r} has no place here: {usage} [--FIELD VALUE ...]")
    fields.check_types(value)
    return value


def weights(words: Iterable[str]) -> dict[str, float]:
    """Read NAME, which weighs 1, and NAME=WEIGHT."""
    by_name: dict[str, float] = {}
    for word in words:
        name, sign, weight = word.partition("=")
        if name in by_name:
            raise UserError(f"--rewards has {name!r} twice, and only one weight could count; give each name once")
        try:
            by_name[name] = float(weight) if sign else 1.0
        except ValueError:
            raise UserError(f"--rewards {word}: {weight!r} is no weight; give NAME or NAME=WEIGHT") from None
        if not name or not math.isfinite(by_name[name]):
            raise UserError(f"--rewards {word}: give NAME or NAME=WEIGHT, with a finite weight")
    return by_name


def _read(default: T, words: list[str], usage: str, about: str) -> tuple[T, list[str]]:
    """Let tyro read the words; a UserError of a field comes out as itself, not in tyro's frame."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                type(default),
                default=default,
                args=words,
                prog=usage,
                description=about,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
                registry=REGISTRY,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        cause = stop.__context__
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(said.getvalue())
        raise ParserExit(int(stop.code or 0)) from None


def _folded(default: Any, shown: Collection[str]) -> Any:
    """A stand-in for `default` of which the help shows only some fields."""
    kind, hidden = type(default), tyro.conf.Suppress
    types = {name: hint if name in shown else hidden[hint] for name, hint in get_type_hints(kind).items()}
    values = {field.name: dataclasses.field(default=None) for field in dataclasses.fields(kind)}
    body = {"__annotations__": types, "__post_init__": lambda self: None, **values}
    stand_in = dataclasses.dataclass(frozen=True, kw_only=True)(type(kind.__name__, (kind,), body))
    return stand_in(**{name: getattr(default, name) for name in values})


def _require_once(given: Iterable[str]) -> None:
    """Refuse a flag that stands twice: of two values the first would be dropped without a word."""
    flags = Counter(word.partition("=")[0].replace("_", "-") for word in given if word.startswith("--"))
    twice = next((flag for flag, times in flags.items() if times > 1), None)
    if twice:
        raise UserError(f"{twice} is given twice; give it once, with all its values behind it")


def _switched_on(default: Any, given: list[str]) -> list[str]:
    """Read a yes-or-no flag without a value as a yes: `--overhead` is `--overhead True`."""
    switches = {f"--{field.name}".replace("_", "-") for field in dataclasses.fields(default) if field.type == "bool"}
    words = []
    for word, following in zip(given, [*given[1:], "--"]):
        bare = word.replace("_", "-") in switches and following.startswith("--")
        words += [word, "True"] if bare else [word]
    return words


@REGISTRY.primitive_rule
def _pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
    """Read a dict with text keys as NAME=VALUE words, the whole of it; tyro's own rule keeps the default's keys.

    Where a value is a tuple of texts, it is NAME=TEXT,TEXT; where it is a weight, NAME alone weighs 1.
    """
    if info.type_origin is not dict:
        return None
    kind = get_args(info.type)[1]
    several = get_origin(kind) is tuple
    wanted = "=STR,STR" if several else "[=FLOAT]" if kind is float else f"={kind.__name__.upper()}"

    def pair(word: str) -> tuple[str, Any]:
        name, _, value = word.partition("=")
        try:
            if name and value:
                return name, tuple(value.split(",")) if several else kind(value)
        except ValueError:
            pass
        raise ValueError(f"{word!r} is not NAME{wanted}")

    def pairs(words: list[str]) -> dict[str, Any]:
        by_name = weights(words) if kind is float else dict(map(pair, words))
        if len(by_name) < len(words):
            raise UserError(f"of {' '.join(words)} two have the same name, and only one could count; give each once")
        return by_name

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[NAME{wanted} ...]",
        instance_from_str=pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={','.join(v) if several else v}" for name, v in value.items()],
    )
