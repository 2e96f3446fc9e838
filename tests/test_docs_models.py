"""The adapter in docs/models.md is short, runs, and learns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs"


def test_the_adapter_of_the_docs_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, code) = re.findall(r"```python\n(.*?)```", (DOCS / "models.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) < 80
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/models.md", "exec"), {"__name__": "docs"})
    rows = [json.loads(line) for line in Path("runs/patches/metrics.jsonl").read_text().splitlines()]
    rewards = [row["train/reward_mean"] for row in rows if "train/reward_mean" in row]
    assert len(rewards) == 40
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    assert Path("runs/patches/final/transformer/model.safetensors").is_file()
