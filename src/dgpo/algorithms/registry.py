"""Algorithms by name: the built-in ones, registered ones, and `package.module:Class` of one's own.

A run keeps its algorithm in config.yaml as this name and, where the class is a dataclass, the values of its fields.
Listing the names imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dgpo.errors import UserError, did_you_mean
from dgpo.utils.imports import import_named, is_path, meant

if TYPE_CHECKING:
    from dgpo.algorithms.base import Algorithm

BUILT_IN = {
    "dgpo": "dgpo.algorithms.dgpo:DGPO",
    "flow_grpo": "dgpo.algorithms.flow_grpo:FlowGRPO",
    "diffusion_nft": "dgpo.algorithms.diffusion_nft:DiffusionNFT",
    "awm": "dgpo.algorithms.awm:AWM",
    "diffusion_dpo": "dgpo.algorithms.diffusion_dpo:DiffusionDPO",
    "ram": "dgpo.algorithms.ram:RAM",
    "crd": "dgpo.algorithms.crd:CRD",
}
_registered: dict[str, type] = {}
_met: dict[str, type] = {}  # by path, every class that a config was given: some cannot be imported, as in a notebook


def register_algorithm(name: str, algorithm: type) -> None:
    """Give a class a short name for config files and `from_dict`, in this process.

    A run's config.yaml keeps the path of the class, so that whoever can import it can resume the run.
    """
    if not name.isidentifier() or name in BUILT_IN:
        raise UserError(f"an algorithm cannot be registered as {name!r}: take a name of letters that is not built in")
    if not isinstance(algorithm, type):
        raise UserError(f"register_algorithm({name!r}, ...) takes a class, and {algorithm!r} is none")
    _registered[name] = algorithm


def known_algorithms() -> list[str]:
    """The short names. Imports no algorithm."""
    return [*BUILT_IN, *_registered]


def stand_in() -> Algorithm:
    """For a config that nothing is trained with: any number of solver steps and all other fields go with it.

    A run's own algorithm may be a class that is not here.
    """
    return make_algorithm("awm", {}, root=None)


def algorithm_class(name: str) -> type:
    """The class of a short name or of `package.module:Class`."""
    path = BUILT_IN.get(name, name)
    if name in _registered or path in _met:
        return _registered.get(name) or _met[path]
    if not is_path(path):
        raise UserError(
            f"algorithm.name={name!r} is unknown. {did_you_mean(name, known_algorithms())} Your own is given as "
            f"{meant(name) or 'package.module:Class'}"
        )
    if path.startswith("__main__:") or "<locals>" in path:
        raise UserError(
            f"algorithm.name={name!r} is a class of a script, a notebook or a function, which cannot be imported from "
            "here. Call dgpo.train(config, resume=True) in Python where the class is defined; a class that lies in a "
            "module of its own works everywhere"
        )
    found = import_named(path, f"algorithm {name!r}")
    if not isinstance(found, type):
        raise UserError(f"algorithm {name!r} is a {type(found).__name__}; name a class that keeps dgpo.Algorithm")
    return found


def make_algorithm(name: str, values: Mapping[Any, Any], root: Any) -> Algorithm:
    """An algorithm from what a config file says. root: where a mistyped name is looked for, see `fields.build`."""
    from dgpo.utils import fields

    kind = algorithm_class(name)
    if dataclasses.is_dataclass(kind):
        return fields.build(kind, values, root, "algorithm.")
    if values:
        raise UserError(f"algorithm {name!r} is no dataclass, so it has no fields; {', '.join(map(str, values))} given")
    _require_no_arguments(kind)
    return kind()


def path_of(algorithm: object) -> str:
    """What config.yaml calls an algorithm: the short name of a built-in one, or its class's path."""
    path = f"{type(algorithm).__module__}:{type(algorithm).__qualname__}"
    return next((name for name, built_in in BUILT_IN.items() if built_in == path), path)


def accept(algorithm: object) -> None:
    """Refuse what is no algorithm, or what config.yaml could not keep; and know its class from now on."""
    from dgpo.algorithms.contract import problems
    from dgpo.utils import fields

    if isinstance(algorithm, type):
        raise UserError(
            f"algorithm={algorithm.__name__} is a class; give an object of it: algorithm={algorithm.__name__}()"
        )
    wrong = problems(algorithm)
    if wrong:
        raise UserError(
            f"algorithm={type(algorithm).__name__} does not keep the protocol: {'; '.join(wrong)}. A class that "
            "derives from dgpo.Algorithm has all methods but points_per_update, advantages, points and loss"
        )
    if dataclasses.is_dataclass(algorithm):
        fields.require_plain(algorithm, "algorithm.")
    else:
        _require_no_arguments(type(algorithm))
    _met[path_of(algorithm)] = type(algorithm)


def _require_no_arguments(kind: type) -> None:
    """So that the name of a class that is no dataclass says all of its objects."""
    parameters = inspect.signature(kind).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if named:
        raise UserError(
            f"algorithm={kind.__name__} is made with {', '.join(named)}, and only the fields of a dataclass are kept "
            "with a run: make it a dataclass with these fields, or let it take no arguments"
        )
