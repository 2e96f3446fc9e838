"""Whether an object is an algorithm: all that the loop asks of one, before a run begins."""

from __future__ import annotations

import inspect
from typing import Any

from dgpo.algorithms.base import Algorithm


def problems(algorithm: Any) -> list[str]:
    """Say in what an object does not keep the protocol; [] where it does."""
    lacking = [name for name in _MEMBERS if _lacks(algorithm, name)]
    found = [f"it has no {', '.join(lacking)}"] if lacking else []
    present = {name: getattr(algorithm, name) for name in _MEMBERS if name not in lacking and hasattr(algorithm, name)}
    for name, value in present.items():
        member = _MEMBERS[name]
        if not isinstance(member, property) and not _takes(value, member):
            found.append(f"{name} must take ({', '.join([*inspect.signature(member).parameters][1:])})")
    for name, values in _VALUES.items():
        if name in present and present[name] not in values:
            found.append(f"{name} is {present[name]!r} and must be one of {', '.join(map(repr, values))}")
    if "needs" in present and not _names_sets(present["needs"]):
        found.append(f"needs is {present['needs']!r} and must be a frozenset of 'ref' and 'old', or an empty one")
    return found


_MEMBERS = {name: member for name, member in vars(Algorithm).items() if not name.startswith("_")}
_VALUES = {"old_follows": ("step", "rollout"), "couples_group": (True, False), "skips_zero": (True, False)}
_TO_WRITE = ("points_per_update", "advantages", "points", "loss")
"""Members without a plainest form."""


def _lacks(algorithm: Any, name: str) -> bool:
    """Whether a member is not there, or is still the protocol's empty one."""
    own = getattr(type(algorithm), name, None)
    if name == "statistic" and not getattr(algorithm, "couples_group", False):
        return False  # it is never called
    empty = (*_TO_WRITE, "statistic")
    return not hasattr(algorithm, name) or (name in empty and own is _MEMBERS[name])


def _takes(method: Any, member: Any) -> bool:
    """Whether a method can be called as the loop calls the protocol's."""
    if not callable(method):
        return False
    number = len(inspect.signature(member).parameters) - 1
    try:
        inspect.signature(method).bind(*range(number))
    except TypeError:
        return False
    except ValueError:  # written in C, which tells no signature
        return True
    return True


def _names_sets(needs: Any) -> bool:
    return isinstance(needs, (set, frozenset)) and needs <= {"ref", "old"}
