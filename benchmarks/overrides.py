"""What candidates and trials change in a config: field=value, such as `optimizer.lr=3e-3`."""

from __future__ import annotations

from collections.abc import Iterable

from dgpo.config import Config, from_dict, to_dict
from dgpo.utils.strict_yaml import parse


def overridden(config: Config, changes: Iterable[str]) -> Config:
    """The config with these changes; values are read as those of a config file."""
    values = to_dict(config)
    for change in changes:
        field, _, value = change.partition("=")
        *heading, own = field.split(".")
        (values[heading[0]] if heading else values)[own] = parse(value)
    return from_dict(values)
