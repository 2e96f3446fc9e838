"""Dataclasses as trees of typed fields: built from plain values strictly, compared, and searched for a mistyped name.

Nothing is converted, except that an integer serves as a float and a list as a tuple: "8" is no int, nor are 8.0 and
true. NaN and infinity are no values of a field: comparisons with NaN are false, so that a check of a range misses it. A
nested dataclass is a mapping in plain values, and a dot in names: `optimizer.lr`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from dgpo.errors import UserError, did_you_mean


def build(kind: Any, values: Mapping[Any, Any], root: Any, prefix: str = "") -> Any:
    """An instance of the dataclass `kind`, which is found at `prefix` below the dataclass `root`."""
    hints, arguments = _hints(kind), {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key is None:
            raise UserError(f"a line {f'below {prefix[:-1]} ' if prefix else ''}has no field name, only {value!r}")
        heading, _, own = str(key).partition(".")
        if own and heading in hints:
            raise UserError(
                f"{name!r} is how the command line names it; in a config file write `{heading}:` and, indented on the "
                f"next line, `{own}: ...`"
            )
        if key not in hints:
            raise unknown(root, name, [f"{prefix}{own}" for own in hints])
        if dataclasses.is_dataclass(hints[key]) and not isinstance(value, hints[key]):
            value = build(hints[key], mapping(name, value), root, f"{name}.")
        arguments[key] = value = _tuples(value)
        _check_type(kind, key, value, name)
    for f in dataclasses.fields(kind):
        if f.init and f.name not in arguments and f.default is f.default_factory is dataclasses.MISSING:
            raise UserError(f"{prefix}{f.name} is missing, and {kind.__name__} has no default for it")
    return kind(**arguments)


def check_types(instance: Any, prefix: str = "") -> None:
    """Refuse an instance with a field, nested ones included, whose value is not of the field's type."""
    for f in dataclasses.fields(instance):
        value, name = getattr(instance, f.name), f"{prefix}{f.name}"
        if not f.init:
            continue  # derived from the others
        _check_type(type(instance), f.name, _tuples(value), name)
        if dataclasses.is_dataclass(value):
            check_types(value, f"{name}.")


def changed(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Names of the fields whose values differ between two instances of a dataclass."""
    found = []
    for f in dataclasses.fields(before):
        name, old, new = f"{prefix}{f.name}", getattr(before, f.name), getattr(after, f.name)
        if dataclasses.is_dataclass(old) and type(old) is type(new):
            found += changed(old, new, f"{name}.")
        elif not (plain(old) == plain(new) or (_is_opaque(old) and type(old) is type(new))):
            found.append(name)
    return found


def require_plain(instance: Any, prefix: str = "") -> None:
    """Refuse an instance with a value that a config file cannot hold."""
    for f in dataclasses.fields(instance):
        value, name = getattr(instance, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            require_plain(value, f"{name}.")
        elif f.init and not _is_plain(value):
            raise UserError(
                f"{name} is {value!r}, which a config file cannot hold; use numbers, texts, and tuples, lists, dicts "
                "and dataclasses of them"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value, *value.values())))
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else type(value) in _ATOMS


_ATOMS = (type(None), bool, int, float, str)


def _is_opaque(value: Any) -> bool:
    """Whether nothing is known of an object but its class."""
    return not isinstance(value, (*_ATOMS, Mapping, list, tuple)) and not dataclasses.is_dataclass(value)


def unknown(root: Any, name: str, siblings: Sequence[str] = ()) -> UserError:
    """The error for a name that is no field of the dataclass `root` or instance of one: it tells the nearest that is.

    siblings: the fields that stand beside the unknown one; by default those of `root` under the same heading.
    """
    known = list(_names(root))
    group, _, own = name.rpartition(".")
    elsewhere = [full for full in known if full.endswith(f".{own}")]
    siblings = siblings or [full for full in known if full.rpartition(".")[0] == group]
    hint = f"Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(name, siblings or known)
    return UserError(f"unknown field {name!r}. {hint}")


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """`value`, the mapping below the heading `name`; {} for a heading with nothing below it."""
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{name}={value!r}: it must hold fields of its own")
    return value or {}


def to_plain(instance: Any) -> dict[str, Any]:
    """The values that `build` makes an equal instance of, as a config file holds them."""
    values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}
    return {name: to_plain(v) if dataclasses.is_dataclass(v) else plain(v) for name, v in values.items()}


def plain(value: Any) -> Any:
    """With lists for tuples, all the way down."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_type(kind: Any, key: str, value: Any, name: str) -> None:
    try:
        _adapters(kind)[key].validate_python(value, strict=True)
    except ValidationError as error:
        if any(e["input"] is None for e in error.errors()):
            raise _is_empty(kind, key, value, name) from None
        problems = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
        wanted = _annotation(kind, key)
        raise UserError(f"{name}={plain(value)!r}: {' or '.join(problems)} (the type is {wanted})") from None
    if not all(map(math.isfinite, _floats(value))):
        raise UserError(f"{name}={plain(value)!r} cannot work: it must be finite, and NaN and infinity are not")


def _floats(value: Any) -> Iterator[float]:
    """All floats in a value, however deep."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, (Mapping, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _floats(item)


def _is_empty(kind: Any, key: str, value: Any, name: str) -> UserError:
    """The error for a field, or an item in it, that has no value, as after `lr:` with nothing behind it."""
    wanted, where = _annotation(kind, key), name
    while value is not None:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        inner, value = next((k, v) for k, v in items if _holds_none(v))
        where = f"{where}.{inner}" if isinstance(inner, str) else f"{where}[{inner}]"
    of = "the type" if where == name else f"the type of {name}"
    return UserError(f"{where} is empty, and it needs a value ({of} is {wanted}). Give one, or leave {where} out")


def _annotation(kind: Any, key: str) -> str:
    """The type of a field, which a base class may have declared, as it is written."""
    own = next(base.__annotations__[key] for base in kind.__mro__ if key in vars(base).get("__annotations__", {}))
    return own if isinstance(own, str) else inspect.formatannotation(own)


def _holds_none(value: Any) -> bool:
    if isinstance(value, (Mapping, tuple)):
        return any(map(_holds_none, value.values() if isinstance(value, Mapping) else value))
    return value is None


@cache
def _adapters(kind: Any) -> dict[str, TypeAdapter[Any]]:
    try:
        return {name: TypeAdapter(hint) for name, hint in _hints(kind).items()}
    except PydanticUserError as error:
        raise _untyped(kind, error) from None


def _hints(kind: Any) -> dict[str, Any]:
    """The types of the fields that a dataclass is made with."""
    try:
        hints = get_type_hints(kind)
    except NameError as error:
        raise _untyped(kind, error) from None
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def _untyped(kind: Any, error: Exception) -> UserError:
    return UserError(
        f"the fields of {kind.__name__} have a type that cannot be checked ({str(error).splitlines()[0]}): use "
        "numbers, texts, and tuples, lists and dicts of them"
    )


def _names(kind: Any, prefix: str = "") -> Iterator[str]:
    """All fields, nested ones as `sampling.solver`."""
    hints = _hints(kind if isinstance(kind, type) else type(kind))
    for name, hint in hints.items():
        hint = hint if isinstance(kind, type) else getattr(kind, name)
        yield from _names(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [f"{prefix}{name}"]


def _tuples(value: Any) -> Any:
    """With tuples for lists, all the way down."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
