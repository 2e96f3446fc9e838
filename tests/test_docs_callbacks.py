"""The callback in docs/callbacks.md runs, and the table names every event."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dgpo.run.callbacks import Callback

TEXT = (Path(__file__).parents[1] / "docs" / "callbacks.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_callback_of_the_docs_ends_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/callbacks.md", "exec"), {"__name__": "docs"})
    assert "runs/plateau: 3 iterations, best mean reward 0.000" in capsys.readouterr().out
    assert Path("runs/plateau/checkpoints/iteration-000003").is_dir()


def test_the_table_names_every_event() -> None:
    told = re.findall(r"^\| `(\w+)\(", TEXT, re.MULTILINE)
    assert told == [name for name in vars(Callback) if not name.startswith("_")]
