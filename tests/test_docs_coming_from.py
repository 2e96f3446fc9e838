"""docs/coming_from.md names fields that exist, with values that they take."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dgpo.algorithms import DGPO, FlowGRPO
from dgpo.config import Config

TEXT = (Path(__file__).parents[1] / "docs/coming_from.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("| ") and "---" not in line]
OURS = sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", row[-2])})
"""What stands in the last column but one."""


def found(owner: Any, name: str) -> list[Any]:
    """The objects that have the field: a config, or a part of it; an algorithm's may be Flow-GRPO's."""
    part, _, field = name.rpartition(".")
    owners = [getattr(owner, part)] if part else [owner]
    owners += [FlowGRPO()] if part == "algorithm" else []
    return [one for one in owners if is_dataclass(one) and field in {f.name for f in fields(one)}]


@pytest.mark.parametrize("told", OURS)
def test_a_field_that_is_named_is_there(told: str) -> None:
    name, _, value = told.partition("=")
    algorithm = FlowGRPO() if name == "split_updates" else DGPO()  # which needs whole groups
    owners = found(replace(Config(), algorithm=algorithm), name)
    assert owners, name
    if value:
        replace(owners[0], **{name.rpartition(".")[2]: {"true": True}.get(value, value)})


def test_all_three_tables_are_read() -> None:
    assert len(OURS) > 45
    assert {"algorithm.window_end", "reward_normalization=group", "base_precision=int8"} <= {*OURS}
