"""Bad input to the whole program: one message, exit code 2, nothing written and nothing lost."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bad_input_table import CONFIGS, OCR, OTHERS, PROMPTS, write_files
from runs import small

from dgpo.commands.main import main
from dgpo.config import load_yaml, save_yaml


@pytest.fixture
def config_file(tiny_folder: Path, tmp_path: Path) -> Path:
    """A config that would run; its --out is to be given."""
    path = tmp_path / "small.yaml"
    save_yaml(small(tiny_folder, tmp_path / "unused", rewards={"runs:colour": 1.0}), path)
    return path


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run of two iterations, to be spoilt."""
    copy = shutil.copytree(finished_run, tmp_path / "run")
    save_yaml(replace(load_yaml(copy / "config.yaml"), out=str(copy)), copy / "config.yaml")
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one message with which the command is refused."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("dgpo: ")
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--group-size 1", "group_size=1 cannot work"),
        ("--grop-size 2", "Did you mean 'group_size'?"),
        ("--prompts empty.txt", "there is no prompt in 'empty.txt'"),
        ("--prompts none.txt", "cannot read the prompt file 'none.txt'"),
        ("--prompts broken.jsonl", "line 2 of 'broken.jsonl' is not JSON"),
        ("--eval-every 1 --eval-prompts seen=empty.txt", "there is no prompt in 'empty.txt'"),
        ("--rewards shapes=1", "include"),
        ("--eval-every 1 --eval-prompts seen=some.txt --eval-rewards shapes_strict", "include"),
        ("--rewards shape=1", "unknown reward 'shape'. Did you mean 'shapes'?"),
        ("--rewards runs:color=1", "module runs has no 'color'"),
        ("--model no/such/folder", "there is no folder 'no/such/folder'"),
        ("--resolution 65", "resolution=65 does not fit"),
        ("--lora.target-modules to_x", "to_x"),
        ("--device gpu", "device='gpu' is unknown"),
        ("--trackers wandbb", "unknown tracker 'wandbb'. Did you mean 'wandb'?"),
    ],
)
def test_a_run_that_cannot_work_leaves_no_folder(
    words: str,
    message: str,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "some.txt").write_text("a cat\n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a cat"}\n{"prompt"\n')
    before = contents(tmp_path)
    assert message in refused(capsys, "train", config_file, "--out", "out", *words.split())
    assert not (tmp_path / "out").exists()
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        *((f"train {words}", message) for words, message in (*CONFIGS, *PROMPTS, *OCR)),
        *((f"train {words} --dry-run", message) for words, message in PROMPTS[-6:]),
        *((f"plan {words}", message) for words, message in CONFIGS[:3]),
        *OTHERS,
    ],
)
def test_the_table_of_bad_input(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """benchmarks/faults/bad_inputs.py gives all of it a process each."""
    if " ocr " in line:
        pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    before = contents(tmp_path)
    words = [*line.split(), *(["--out", "out"] if line.startswith(("train", "plan")) else [])]
    assert message in refused(capsys, *words)
    assert not (tmp_path / "out").exists()
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_plan_tells_of_a_row_that_a_run_would_stop_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    assert main(["plan", "--prompts", "class.jsonl"]) == 2
    assert "problem  rewards: line 2 of 'class.jsonl': the shapes world cannot judge" in capsys.readouterr().out


def test_a_recipe_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'tiny'?" in refused(capsys, "train", "tny", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot write the run folder" in refused(capsys, "train", config_file, "--out", tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_holds_something(config_file: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    message = refused(capsys, "train", config_file, "--out", run)
    assert "already holds something" in message
    assert f"--resume {run}" in message
    assert contents(run) == before


def test_a_folder_that_holds_something_is_refused_before_the_model_is_loaded(
    config_file: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").touch()
    missing = ("train", config_file, "--model", "./nowhere")
    assert "already holds something" in refused(capsys, *missing, "--out", run)
    assert "is no run" in refused(capsys, *missing, "--out", tmp_path, "--overwrite")
    assert "nowhere" in refused(capsys, *missing, "--out", run, "--overwrite")


def test_the_plan_and_a_dry_run_refuse_a_folder_as_the_run_does(
    config_file: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    message = refused(capsys, "train", config_file, "--out", run).splitlines()[-1].removeprefix("dgpo: ")
    dry = ("train", config_file, "--dry-run", "--model", "./nowhere", "--out", run)
    assert message in refused(capsys, *dry)
    assert "nowhere" in refused(capsys, *dry, "--overwrite")
    assert "nowhere" in refused(capsys, *dry, "--resume", "auto")
    assert main(["plan", str(config_file), "--out", str(run)]) == 2
    assert f"  problem  run folder: {message}" in capsys.readouterr().out
    assert main(["plan", str(config_file), "--out", str(run), "--overwrite"]) == 0
    assert f"  ok       run folder: {run}, from which the old run is moved aside" in capsys.readouterr().out
    assert contents(run) == before


def test_a_disk_that_is_too_small_is_told_before_the_run(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000))
    message = refused(capsys, "train", config_file, "--out", tmp_path / "out")
    assert re.search(r"out needs 0\.\d+ GB, and its disk has 0\.000 GB free", message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_a_model_with_corrupt_weights(
    part: str, tiny_folder: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    (weights,) = (model / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused(capsys, "train", config_file, "--model", model, "--out", tmp_path / "out")
    assert f"cannot load the pipeline {model}" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seed 5", "other values of seed; a resumed run may change only iterations, max_minutes"),
        ("--group-size 4 --optimizer.lr 1", "other values of group_size, optimizer.lr;"),
        ("--iterations 1", "iterations=1 is less than"),
        ("--group-size 1", "group_size=1 cannot work"),
        ("--trackers wandbb", "unknown tracker 'wandbb'"),
    ],
)
def test_resuming_with_a_changed_config(
    words: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert message in refused(capsys, "train", "--resume", run, *words.split())
    assert contents(run) == before


def test_resuming_what_cannot_be_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no run folder" in refused(capsys, "train", "--resume", run / "none")
    environment = run / "environment.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "dgpo": "0.0.3"}))
    before = contents(run)
    assert "was written by dgpo 0.0.3" in refused(capsys, "train", "--resume", run)
    assert contents(run) == before


def test_resuming_a_run_without_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    before = contents(run)
    assert "holds no checkpoint to resume from" in refused(capsys, "train", "--resume", run)
    assert contents(run) == before


@pytest.mark.slow
def test_after_a_damaged_checkpoint_the_advice_leads_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = run / "checkpoints" / "iteration-000002" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    before = contents(run)
    message = refused(capsys, "train", "--resume", run)
    assert "policy.safetensors is not what was written" in message
    assert contents(run) == before
    advice = re.search(r"Move (\S+) to another place to continue from .* (\S+)$", message)
    assert advice
    assert Path(advice[2]) == run / "checkpoints" / "iteration-000001"
    shutil.move(advice[1], tmp_path / "another place")
    assert main(["train", "--resume", str(run)]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "train/reward_mean" in row] == [1, 2]
    assert (run / "checkpoints" / "iteration-000002").is_dir()


def test_after_the_only_checkpoint_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints" / "iteration-000001")
    (run / "checkpoints" / "iteration-000002" / "old.safetensors").unlink()
    message = refused(capsys, "train", "--resume", run)
    assert "old.safetensors cannot be read" in message
    assert "no intact checkpoint before it" in message


@pytest.mark.slow
def test_doubts_are_told_by_the_plan_and_at_the_start_of_a_run_which_goes_on(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so is a reward that scores all images alike."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "doubting.py").write_text(
        "def short(images, prompts, metadata):\n    return [1.0] * len(prompts)\n"
        "short.check_row = lambda prompt, metadata: 'says little' if len(prompt) < 8 else None\n"
    )
    words = [str(config_file), "--rewards", "doubting:short", "runs:colour", "--iterations", "1", "--out", "out"]
    told = "prompts: doubting:short, 2 of 5 prompts: says little (prompt number 3, prompt number 4)"
    assert main(["plan", *words]) == 0
    assert f"  warning  {told}" in capsys.readouterr().out
    assert main(["train", *words]) == 0
    out = capsys.readouterr().out
    assert f"warning: {told}" in out
    assert "warning: the reward 'doubting:short' gave all images of iteration 1 the score 1" in out


@pytest.mark.slow
def test_prompts_that_are_longer_than_the_model_reads_are_told_once(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not with the whole rest of each."""
    monkeypatch.chdir(tmp_path)
    Path("long.txt").write_text(f"a cat\n{'a red cat and ' * 100}\n")
    words = [str(config_file), "--prompts", "long.txt", "--eval-prompts", "own=long.txt", "--iterations", "1"]
    told = "1 of 2 prompts is longer than the 16 tokens of text that the model reads"
    assert main(["plan", *words]) == 0
    assert f"  warning  {told}" in capfd.readouterr().out
    assert main(["train", *words, "--out", "out"]) == 0
    assert f"warning: {told}" in Path("out/console.log").read_text()
    assert main(["eval", "out"]) == 0
    assert main(["sample", "out", "--prompts", "long.txt", "--images", "1"]) == 0
    assert main(["collect", "out", "--groups", "1"]) == 0
    out, err = capfd.readouterr()
    assert out.count(told) == 1
    assert err.count(f"dgpo: warning: {told}") == 3
    assert "red cat and a red cat and a red cat and a red cat and a red cat and" not in out + err


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_run_folder_in_the_place_of_a_config_is_told_what_works(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"take its config, {run / 'config.yaml'}" in refused(capsys, command, run)
    assert main([command, str(run / "config.yaml"), "--out", f"{run}-2"]) == 0
