"""`dgpo teach`: which config it trains, how it ends, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dgpo.commands.main import main
from dgpo.config import save_yaml
from dgpo.recipes import recipe
from dgpo.training.running import Result


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the loop was given; `result` is what it returns."""
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {"result": Result(Path("run"), 3, {}, True)}

    def train(config, **options):
        seen.update(config=config, **options)
        return seen["result"]

    monkeypatch.setattr("dgpo.training.loop.train", train)
    return seen


def test_the_exit_code_says_whether_a_person_or_a_scheduler_stopped_it(trained, capsys):
    assert main(["teach", "tiny-sd3"]) == 130
    assert "Stopped after update 3. Go on with: dgpo teach --resume run" in capsys.readouterr().out
    trained["result"] = trained["result"]._replace(requeue=True)
    assert main(["teach", "tiny-sd3"]) == 75
    trained["result"] = trained["result"]._replace(requeue=False, interrupted=False)
    assert main(["teach", "tiny-sd3"]) == 0


def test_one_command_creates_a_run_or_goes_on_with_it(trained, tmp_path, capsys):
    main(["teach", "tiny-sd3", "--out", "run", "--resume", "auto"])
    assert (trained["resume"], trained["config"].out, trained["config"].rewards) == ("auto", "run", {"human": 1.0})
    (tmp_path / "auto").mkdir()
    save_yaml(recipe("tiny"), tmp_path / "auto" / "config.yaml")
    assert main(["teach", "tiny-sd3", "--out", "run", "--resume", "auto"]) == 2
    assert "here is also a run folder of that name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "name a model first"),
        (["--resume", "nowhere"], "nowhere"),
        (["tiny-sd3", "--port", "x"], "--port x must be a number"),
        (["tiny-sd3", "--num-gruops", "2"], "num_groups"),
        (["tiny-sd3", "--rewards", "brightness=1"], "nobody is asked"),
    ],
)
def test_a_wrong_command_line_is_one_message(trained, capsys, given, told):
    assert main(["teach", *given]) == 2
    out = capsys.readouterr()
    assert told in out.err + out.out
    assert "Traceback" not in out.err
    assert "config" not in trained
