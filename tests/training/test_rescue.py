"""What stops a run loses nothing, and says how to go on."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import rescue_worker
import torch
from runs import assert_same_run, colour, newest, rows, run, small, tensors

from dgpo import UserError, load_model
from dgpo.commands.main import main
from dgpo.config import load_yaml, save_yaml
from dgpo.errors import NonFiniteError, RunFailed
from dgpo.rewards.base import RewardError
from dgpo.run import checkpoint
from dgpo.training.schedule import loaded_sets

pytestmark = pytest.mark.slow

PLACES = {
    "next": "dgpo.training.sources.Sampled",
    "fixed_velocities": "dgpo.training.update",
    "follow": "dgpo.training.update",
    "watched": "dgpo.training.running",
    "open_trackers": "dgpo.training.running",
    "make_optimizer": "dgpo.training.setup",
    "write_checkpoint": "dgpo.training.saving",
    "save_yaml": "dgpo.run.folder",
}
"""Name of a function -> the module, or class, in which the loop looks it up."""


def place_of(name: str) -> Any:
    """That module or class."""
    return resolve_name(PLACES[name])


@pytest.fixture(scope="module")
def unhurt(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbed."""
    return run(small(tiny_folder, tmp_path_factory.mktemp("unhurt") / "run")).run


def faulty(error: BaseException | None, call: int = 2) -> dict[str, Any]:
    """The colour reward, which raises at one call."""
    calls = []

    def reward(images: torch.Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> torch.Tensor:
        calls.append(prompts)
        if len(calls) == call and error is not None:
            raise error
        return colour(images, prompts, metadata)

    return {"reward_functions": {"colour": reward}}


def failing_at(call: int, error: BaseException, function: Any) -> Any:
    """`function`, which raises at one call."""
    calls = []

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return function(*arguments, **named)

    return wrapped


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    IndexError("image 99"),
    KeyError("x"),
    UserError("a setting is wrong"),
    SystemExit(0),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["next", "fixed_velocities"])
def test_any_exception_before_the_step_leaves_a_checkpoint(
    tiny_folder: Path, tmp_path: Path, unhurt: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, place: str
) -> None:
    config = small(tiny_folder, tmp_path / "run", checkpoint_every=10)
    # an iteration has two points
    where = place_of(place)
    monkeypatch.setattr(where, place, failing_at(2 if place == "next" else 3, error, getattr(where, place)))
    with pytest.raises(RunFailed, match=f"dgpo train --resume {tmp_path}/run") as caught:
        run(config)
    monkeypatch.undo()
    assert caught.value.__cause__ is error
    assert str(error) in str(caught.value)
    assert ("--micro-batch-size" in str(caught.value)) == isinstance(error, torch.OutOfMemoryError)
    assert f"iteration 1 is saved in {tmp_path}/run/checkpoints/iteration-000001" in str(caught.value)
    assert newest(tmp_path / "run") == 1
    (trace,) = (tmp_path / "run" / "failures").glob("*.txt")
    assert trace.name == "iteration-000002.txt"
    assert "Traceback" in trace.read_text()
    assert "raise error" in trace.read_text()
    assert not (tmp_path / "run" / "failed").exists()
    run(config, resume=True)
    assert_same_run(tmp_path / "run", unhurt, 3)


@pytest.mark.parametrize(
    ("name", "call"), [("open_trackers", 2), ("watched", 1)], ids=["the log's disk is full", "an evaluation"]
)
def test_what_fails_between_iterations_is_done_again(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    (tmp_path / "eval.txt").write_text("a cup\n")
    config = small(
        tiny_folder, tmp_path / "run", checkpoint_every=10, eval_every=1, eval_images_per_prompt=1,
        eval_prompts={"seen": str(tmp_path / "eval.txt")},
    )  # fmt: skip
    full = OSError(errno.ENOSPC, "No space left on device")
    if name == "watched":
        where = place_of(name)
        monkeypatch.setattr(where, name, failing_at(2, full, where.watched))
    else:
        log = importlib.import_module("dgpo.run.trackers").JsonlTracker.log
        monkeypatch.setattr(
            "dgpo.run.trackers.JsonlTracker.log", failing_at(3, full, log)
        )  # evaluation, row, evaluation
    with pytest.raises(RunFailed, match="No space left"):
        run(config)
    monkeypatch.undo()
    assert newest(tmp_path / "run") == 1
    with pytest.raises(RewardError):  # again, after the evaluation was made up for
        run(config, resume=True, **faulty(ConnectionError("away")))
    run(config, resume=True)
    run(replace(config, out=str(tmp_path / "unhurt")))
    assert_same_run(tmp_path / "run", tmp_path / "unhurt", 3)


def test_a_step_that_fails_halfway_is_no_whole_iteration(
    tiny_folder: Path, tmp_path: Path, unhurt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the optimizer: some weights may have been changed and others not."""
    config = small(tiny_folder, tmp_path / "run", checkpoint_every=10)
    setup = place_of("make_optimizer")
    made = setup.make_optimizer

    def optimizer(*arguments: Any) -> Any:
        inner = made(*arguments)
        inner.step = failing_at(2, torch.OutOfMemoryError("no room"), inner.step)
        return inner

    monkeypatch.setattr(setup, "make_optimizer", optimizer)
    with pytest.raises(RunFailed, match=r"Iteration 2 had already taken a step.*what came after iteration 0 is lost"):
        run(config)
    monkeypatch.undo()
    assert newest(tmp_path / "run") == 0
    assert newest(tmp_path / "run" / "failed") == 1
    run(config, resume=True)
    assert_same_run(tmp_path / "run", unhurt, 3)


def test_if_saving_fails_too_the_first_error_is_told(
    tiny_folder: Path, tmp_path: Path, unhurt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(tiny_folder, tmp_path / "run", checkpoint_every=10)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(checkpoint, "save", failing_at(2, full, checkpoint.save))
    with pytest.raises(RewardError, match="the judge is away") as caught:
        run(config, **faulty(ConnectionError("the judge is away")))
    monkeypatch.undo()
    for part in ("Saving failed too: OSError", "No space left", "iteration-000000", "came after iteration 0 is lost"):
        assert part in str(caught.value)
    run(config, resume=True)
    assert_same_run(tmp_path / "run", unhurt, 3)


def test_a_tracker_that_cannot_close_hides_nothing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dgpo.run.trackers.JsonlTracker.close", close)
    with pytest.raises(RewardError, match="the judge is away"):
        run(small(tiny_folder, tmp_path / "run"), **faulty(ConnectionError("the judge is away")))


@pytest.mark.parametrize("error", [UserError("no text in quotes"), SystemExit(0), RewardError("x", 99, "lost its way")])
def test_of_a_reward_prompt_picture_and_traceback_are_kept(tiny_folder: Path, tmp_path: Path, error: Exception) -> None:
    with pytest.raises(RunFailed) as caught:
        run(small(tiny_folder, tmp_path / "run"), **faulty(error))
    (picture,) = (tmp_path / "run" / "failures").glob("*.png")
    assert str(picture) in str(caught.value)
    assert json.loads(picture.with_suffix(".json").read_text())["prompt"] in str(caught.value)
    assert "raise error" in picture.with_suffix(".txt").read_text()
    assert newest(tmp_path / "run") == 1


def config_file(config: Any, folder: Path, reward: str) -> str:
    save_yaml(replace(config, rewards={f"failing_rewards:{reward}": 1.0}), folder / "config.yaml")
    return str(folder / "config.yaml")


@pytest.mark.parametrize("reward", ["exiting", "misconfigured"])
@pytest.mark.parametrize("command", ["train", "train --dry-run", "eval"])
def test_a_run_that_fails_is_one_message_and_never_code_0(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reward: str, command: str
) -> None:
    (tmp_path / "eval.txt").write_text("a cup\n")
    config = small(tiny_folder, tmp_path / "run", eval_prompts={"seen": str(tmp_path / "eval.txt")}, num_samples=1)
    words = [*command.split(), config_file(config, tmp_path, reward)]
    if command == "eval":
        words = [
            command,
            str(tiny_folder),
            "--rewards",
            f"failing_rewards:{reward}=1",
            "--eval-prompts",
            f"a={tmp_path / 'eval.txt'}",
        ]
    code = main(words)
    said = capsys.readouterr().err
    assert code == (1 if command == "train" or reward == "exiting" else 2)
    assert said.count("dgpo: ") == 1
    assert "Traceback" not in said
    assert ("--resume" in said) == (command == "train")


def test_a_failure_of_one_rank_hangs_no_other_and_loses_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    """In common work all learn of it; elsewhere the main process fails when the other has gone, and saves."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", rescue_worker.__file__]
    command = [sys.executable, *launch, str(tiny_folder), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    for name, text in (("memory", "no room on the second rank"), ("unpicklable", "Unpicklable: one word")):
        for rank in (0, 1):
            message = json.loads((tmp_path / f"{name}-{rank}.json").read_text())
            assert text in message
            assert f"saved in {tmp_path}/{name}/checkpoints/iteration-000001" in message
        assert newest(tmp_path / name) == 1
        assert "rescue_worker" in (tmp_path / name / "failures" / "iteration-000002-rank1.txt").read_text()
    assert newest(tmp_path / "alone") == 1
    assert "on the second rank only" in done.stderr
    config = small(tiny_folder, tmp_path / "alone")
    assert run(replace(config, checkpoint_every=10), resume=True).iterations == 3


# --- what is not finite


def explode(monkeypatch: pytest.MonkeyPatch, after: int, names: tuple[str, ...]) -> None:
    """Ruin the weights at the end of an iteration."""
    update, calls = place_of("follow"), []
    follow = update.follow

    def wrapped(model: Any, decay: float) -> None:
        follow(model, decay)
        calls.append(1)
        if len(calls) == after:
            for name in names:
                next(iter(model.weights.tensors(name).values())).fill_(math.nan)

    monkeypatch.setattr(update, "follow", wrapped)


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_weights_that_are_not_finite_become_no_checkpoint(
    tiny_folder: Path, tmp_path: Path, unhurt: Path, monkeypatch: pytest.MonkeyPatch, every: int, finetune: str
) -> None:
    config = small(tiny_folder, tmp_path / "run", checkpoint_every=every, keep_checkpoints=1, finetune=finetune)
    explode(monkeypatch, 2, ("policy",))
    with pytest.raises(NonFiniteError) as caught:
        run(config)
    monkeypatch.undo()
    good = 1 if every == 1 else 0  # the newest before the weights were ruined, which pruning must not have taken
    assert newest(tmp_path / "run") == good
    assert newest(tmp_path / "run" / "failed") == 2
    message = str(caught.value)
    for part in ("policy", f"{tmp_path}/run/failed", f"The last good checkpoint is {tmp_path}/run", "optimizer.lr"):
        assert part in message
    assert f"iteration-{good:06d}" in message
    assert ("--lora.start" in message) == (finetune == "lora")
    run(config, resume=True)
    assert newest(tmp_path / "run") == 3
    if finetune == "lora":
        assert_same_run(tmp_path / "run", unhurt, 3)


@pytest.mark.parametrize("evaluates", [True, False])
@pytest.mark.parametrize("part", ["latents", "pictures"])
def test_what_is_no_picture_reaches_no_reward(tiny_folder: Path, tmp_path: Path, part: str, evaluates: bool) -> None:
    (tmp_path / "eval.txt").write_text("a cup\n")
    changes = {"eval_every": 1, "eval_prompts": {"seen": str(tmp_path / "eval.txt")}} if evaluates else {}
    config = small(tiny_folder, tmp_path / "run", **changes)
    model = load_model(tiny_folder, finetune="lora", lora=config.lora, sets=sorted(loaded_sets(config)), device="cpu")
    spoiled = SimpleNamespace(**{name: getattr(model, name) for name in dir(model) if not name.startswith("__")})
    if part == "latents":
        spoiled.velocity = lambda *given, **named: model.velocity(*given, **named) * math.nan
    else:
        spoiled.decode = lambda x0: model.decode(x0) * math.nan
    seen = []
    with pytest.raises(NonFiniteError) as caught:
        run(config, model=spoiled, reward_functions={"colour": lambda *given: seen.append(given)})
    assert not seen
    assert ("latents that are not finite" if part == "latents" else "the VAE") in str(caught.value)
    assert ("'ema'" if evaluates else "'policy'") in str(caught.value)
    assert newest(tmp_path / "run") == 0


def test_a_checkpoint_that_is_not_finite_is_not_continued(finished_run: Path, tmp_path: Path) -> None:
    """As versions before may have written: the message leads to the newest good one."""
    folder = shutil.copytree(finished_run, tmp_path / "run")
    ruined, state = checkpoint.load(folder / "checkpoints" / "iteration-000002")
    next(iter(ruined["policy"].values())).fill_(math.nan)
    shutil.rmtree(folder / "checkpoints" / "iteration-000002")
    checkpoint.save(folder, 2, ruined, state)
    config = replace(load_yaml(folder / "config.yaml"), out=str(folder), iterations=3)
    with pytest.raises(UserError, match=r"cannot be continued: policy not finite\. Move .*iteration-000001"):
        run(config, resume=True, reward_functions={})
    assert checkpoint.latest_good(folder) == folder / "checkpoints" / "iteration-000001"


# --- what a resume refuses


def test_a_refused_resume_leaves_the_config(finished_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished_run, tmp_path / "run")
    damaged = folder / "checkpoints" / "iteration-000002" / "policy.safetensors"
    damaged.write_bytes(b"x")
    before = (folder / "config.yaml").read_bytes()
    config = replace(load_yaml(folder / "config.yaml"), out=str(folder), iterations=7)
    with pytest.raises(UserError, match="is damaged"):
        run(config, resume=True, reward_functions={})
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("field", "edit"), [("seed", "seed: 0"), ("rewards", "'colour': 1.0"), ("optimizer.lr", "lr:")]
)
def test_a_config_edited_by_hand_is_refused(tiny_folder: Path, tmp_path: Path, field: str, edit: str) -> None:
    config = small(tiny_folder, tmp_path / "run", iterations=1)
    run(config)
    path = tmp_path / "run" / "config.yaml"
    config = replace(config, name=load_yaml(path).name)
    changed = {
        "seed": replace(config, seed=1),
        "rewards": replace(config, rewards={"colour": 2.0}),
        "optimizer.lr": replace(config, optimizer=replace(config.optimizer, lr=1e-3)),
    }[field]
    save_yaml(replace(changed, iterations=2), path)
    with pytest.raises(UserError, match=rf"other values of {field};.*put back into .*config\.yaml what .*000001"):
        run(load_yaml(path), resume=True)
    save_yaml(replace(config, iterations=2), path)
    assert run(load_yaml(path), resume=True).iterations == 2


def test_a_run_without_a_config_in_its_checkpoints_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    """As those of versions before."""
    config = small(tiny_folder, tmp_path / "run", iterations=1)
    run(config)
    for path in checkpoint.list_checkpoints(tmp_path / "run"):
        (path / "config.yaml").unlink()
        sums = json.loads((path / "checksums.json").read_text())
        (path / "checksums.json").write_text(json.dumps({k: v for k, v in sums.items() if k != "config.yaml"}))
    with pytest.raises(UserError, match="other values of seed;"):
        run(replace(config, iterations=2, seed=1), resume=True)
    assert run(replace(config, iterations=2), resume=True).iterations == 2


# --- a start that was cut short


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("place", ["write_checkpoint", "save_yaml", "open_trackers"])
def test_a_run_killed_at_its_start_can_begin_again(
    tiny_folder: Path, tmp_path: Path, unhurt: Path, monkeypatch: pytest.MonkeyPatch, place: str, resume: bool
) -> None:
    config = small(tiny_folder, tmp_path / "run")
    where = place_of(place)
    monkeypatch.setattr(where, place, failing_at(1, KeyboardInterrupt(), getattr(where, place)))
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    refused = {("save_yaml", True): "start it again", ("open_trackers", False): "--resume"}.get((place, resume))
    if refused:
        with pytest.raises(UserError, match=refused):
            run(config, resume=resume)
        resume = not resume
    run(config, resume=resume)
    assert_same_run(tmp_path / "run", unhurt, 3)
    assert [row["iteration"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    assert tensors(tmp_path / "run", 3)
