"""What is told who names no model, or a part of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpo.commands.main import main
from dgpo.errors import UserError
from dgpo.models.start import choose_file
from dgpo.utils.places import locate, run_of


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a run that these commands look for."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/first")
    for folder in ("final", "checkpoints/iteration-000010/lora"):
        (run / folder).mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "checkpoints/iteration-000010/config.yaml"):
        (run / name).write_text("seed: 0")
    for name in ("first_evaluation", "last_evaluation", "checkpoints/iteration-000010/lora/pytorch_lora_weights"):
        (run / f"{name}.safetensors").touch()
    return run


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 2
    return capsys.readouterr().err


def test_the_run_of_a_place(run: Path) -> None:
    assert run_of(run) == run_of(run / "final") == run_of(run / "checkpoints" / "iteration-000010") == run
    assert run_of(run.parent) is None


@pytest.mark.parametrize(
    "words",
    [
        *("eval {}/final", "sample {}/final --prompt cat", "collect {}/final --groups 1", "report {}/final"),
        *("compare {} {}/final", "compare {}/final {}", "train --resume {}/final", "picks {}/final"),
        "train --resume {}/checkpoints/iteration-000010",
        "report {}/checkpoints/iteration-000010",
    ],
)
def test_a_part_of_a_run_names_the_run(run: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('{"iteration": 0, "eval/seen/reward": 1.0}\n')
    assert "is a part of the run runs/first; name the run: runs/first" in told(capsys, *words.format(run, run).split())


@pytest.mark.parametrize("command", ["eval", "sample", "collect"])
def test_a_mistyped_run_is_told_of_runs(run: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Give a run folder, a pipeline folder" in told(capsys, command, "runs/nothere")
    assert "It is no run folder either" in told(capsys, command, "runs")
    run.parent.rename("elsewhere")  # without any run, it still is no hub id
    assert "there is no folder 'runs/nothere'" in told(capsys, command, "runs/nothere")


def test_a_run_in_the_place_of_a_model(run: Path) -> None:
    for place in (run, run / "final"):
        with pytest.raises(
            UserError, match=f"belongs to the run {run}, .* --resume {run}. .* --lora.start {run}/final"
        ):
            locate(place)
    with pytest.raises(
        UserError, match=f"there is no folder 'runs/nothere' in the current one, {Path.cwd()}. Give a p"
    ):
        locate("runs/nothere")


def test_a_checkpoint_in_one_file_says_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dream.safetensors").touch()
    expected = 'from_single_file("dream.safetensors").save_pretrained("dream")'
    for command in ("sample dream.safetensors --prompt cat", "plan --model dream.safetensors --prompts a.txt"):
        message = told(capsys, *command.split())
        assert expected in message
        assert "--lora.start dream.safetensors" in message
    with pytest.raises(UserError, match=r"there is no folder 'gone\.safetensors'"):
        locate("gone.safetensors")


def test_a_run_in_the_place_of_its_lora(run: Path) -> None:
    saved = run / "checkpoints" / "iteration-000010"
    for place in (run, saved):
        with pytest.raises(UserError, match=f"whose LoRA is in {saved}/lora; give that"):
            choose_file(str(place))
    (run / "final" / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(UserError, match=f"whose LoRA is in {run}/final; give that"):
        choose_file(str(run))
    assert choose_file(str(run / "final")) == f"{run}/final/pytorch_lora_weights.safetensors"


def test_a_run_that_trained_no_lora(run: Path) -> None:
    (run / "checkpoints" / "iteration-000010" / "lora" / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(UserError, match="is a run that has left no LoRA"):
        choose_file(str(run))
