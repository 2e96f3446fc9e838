"""Importing what a user names as `package.module:name`: a reward, an algorithm, a model family."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import ModuleType
from typing import Any

from dgpo.errors import NotHere, UserError


def import_named(path: str, user: str) -> Any:
    """What `package.module:name` holds. user: what it is for, as "reward 'mine:score'"; a UserError begins with it."""
    module_name, _, name = path.partition(":")
    module = value = import_module(module_name, user)
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            where = getattr(module, "__file__", None) or "built into Python"
            raise UserError(f"{user}: module {module_name} has no {name!r} ({where})")
    return value


def import_module(name: str, user: str) -> ModuleType:
    """A module that is installed or lies in the working folder. user: as in `import_named`."""
    ours = name.partition(".")[0] == __name__.partition(".")[0]
    written = _as_module(name)
    advice = "Install it, or run from the folder that has it" if written == name else f"A module is named {written}"
    absent = NotHere(f"{user}: there is no module {name} here. {advice}")
    if name.startswith("."):  # which importlib refuses in its own way
        raise absent
    try:
        with nullcontext() if ours else _working_folder():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{user}: {name} needs the module {error.name}; install it") from error
        raise absent from None


def is_path(name: str) -> bool:
    """Whether a name has the form `package.module:name`."""
    module, _, attribute = name.partition(":")
    return bool(module and attribute)


def meant(name: str) -> str | None:
    """The `package.module:name` that was written without its colon, such as my.score or my.py; None: no such module."""
    module = _as_module(name)
    if _is_here(module):
        return f"{module}:NAME"
    module, _, attribute = module.rpartition(".")
    return f"{module}:{attribute}" if _is_here(module) else None


def _as_module(name: str) -> str:
    """rewards.my for the file ./rewards/my.py."""
    return name.removesuffix(".py").replace("/", ".").strip(".")


def _is_here(module: str) -> bool:
    """Whether there is a file of a module. The module is not imported, but its package is."""
    with _working_folder(), suppress(Exception):  # whatever a package raises, or ValueError for an empty name
        found = importlib.util.find_spec(module)
        return found is not None and found.origin is not None  # None: any folder of that name
    return False


@contextmanager
def _working_folder() -> Iterator[None]:
    """Python looks into the working folder too, as a console script does not, and there last.

    Installed modules win: a `scipy.py` that happens to lie there is not run for the one that another module imports.
    """
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have changed the path itself
            place = len(sys.path) - 1 - sys.path[::-1].index(folder)
            del sys.path[place]
