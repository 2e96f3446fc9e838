"""Config files as YAML that means what it says: 3e-4 is a number, and a key that stands twice is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dgpo.errors import UserError


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """The fields that a config file holds."""
    try:
        values = parse(Path(path).read_text(encoding="utf-8"))
    except _TwiceError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config {str(path)!r}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no config: it must hold fields such as `iterations: 100`, one a line")
    return values


def parse(text: str) -> Any:
    """What a text holds; raises what PyYAML raises."""
    return yaml.load(text, _Loader)


def dump(values: Any, **style: Any) -> str:
    """The text that `read_mapping` reads as `values`: a text "1e3", which PyYAML would leave bare, stays one."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, **style)


class _TwiceError(Exception):
    """A mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """Safe, reads 3e-4 as a number and refuses equal keys, as YAML 1.2 does and PyYAML does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise _TwiceError(
                    f"{key.value!r} stands in line {lines[key.value]} and again in line {line}, under one heading; "
                    "only one of them could count. Delete the other"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader above would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
