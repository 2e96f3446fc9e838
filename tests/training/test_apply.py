"""`dgpo eval` and `dgpo sample` on a model and on a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import REWARDS, run, small
from safetensors.torch import load_file

import dgpo
from dgpo import FlowGRPO
from dgpo.commands.evaluate import READ
from dgpo.commands.main import main
from dgpo.config import Config, load_yaml, save_yaml
from dgpo.data.image_folder import find_pictures, load_images
from dgpo.run import checkpoint
from dgpo.run.callbacks import Callback, Progress
from dgpo.run.changes import ALARMS
from dgpo.training import apply as tools
from dgpo.training import evaluate
from dgpo.training.apply import load_trained

Command = Callable[..., str]


class StopAfter(Callback):
    """As Ctrl-C in that iteration does."""

    def __init__(self, iteration: int) -> None:
        self._iteration = iteration

    def on_iteration(self, run: Progress, metrics: dict[str, float]) -> None:
        if run.iteration == self._iteration:
            run.stop()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in a folder of its own and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return call


@pytest.mark.slow
def test_eval_of_a_run_repeats_the_evaluation_of_its_best_weights(finished_run: Path) -> None:
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval/seen/reward" in row]
    assert [row["iteration"] for row in evaluations] == [0, 1, 2]
    state = json.loads((finished_run / "checkpoints/iteration-000002/state.json").read_text())["state"]
    taken = evaluations[state["best_iteration"] or 2]  # weights from before the first iteration are not kept
    weights, found, before = dgpo.evaluate(finished_run)
    assert weights.startswith(str(finished_run / "checkpoints"))
    assert any(key.endswith("/change") for key in found)
    assert found == {key: value for key, value in taken.items() if key.startswith("eval/") and key != ALARMS}
    assert before == {key: value for key, value in evaluations[0].items() if key.startswith("eval/") and key != ALARMS}
    alone = dgpo.evaluate(finished_run, compare=False)
    assert alone.metrics == {key: value for key, value in found.items() if not key.endswith("/change")}
    assert alone.before == {}


def test_eval_of_a_run_tells_the_paired_change_and_its_interval(
    finished_run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    Path("nine.jsonl").write_text("".join(f'{{"prompt": "{n} cats", "tag": "cats"}}\n' for n in range(9)))
    words = "--eval-prompts nine=nine.jsonl --eval-images-per-prompt 2"
    lines = command("eval", finished_run, *words.split()).splitlines()
    kinds = words.replace("nine.jsonl", "kinds.jsonl")
    Path("kinds.jsonl").write_text(Path("nine.jsonl").read_text() + '{"prompt": "a dog", "tag": "dogs"}\n')
    tagged = [line.replace("│", " ").split() for line in command("eval", finished_run, *kinds.split()).splitlines()]
    (cats,) = (cells[1:] for cells in tagged if cells[:1] == ["runs:colour/cats"])
    assert len(cats) == 3, "a kind of prompts has no interval"
    (header,) = (line.replace("┃", " ").split() for line in lines if "after" in line and "┃" in line)
    assert header == ["nine", "before", "after", "change", "95", "%"]
    rows = {cells[0]: cells[1:] for cells in (line.replace("│", " ").split() for line in lines if "│" in line)}
    assert rows.keys() == {"runs:colour", "drift"}, "the only reward is no second row, nor is the only tag"
    config = replace(
        load_yaml(finished_run / "config.yaml"), eval_prompts={"nine": "nine.jsonl"}, eval_images_per_prompt=2
    )
    _, found, before = dgpo.evaluate(finished_run, config)
    key = "eval/nine/reward"
    low, high = found[f"{key}/change_low"], found[f"{key}/change_high"]
    assert low <= found[f"{key}/change"] <= high
    assert found[f"{key}/change"] == pytest.approx(found[key] - before[key], abs=1e-6)
    numbers = [f"{before[key]:.3f}", f"{found[key]:.3f}", f"{found[f'{key}/change']:+.3f}", f"{low:+.3f}", "to"]
    assert rows["runs:colour"] == [*numbers, f"{high:+.3f}"]
    assert lines[-1].startswith("before: what the run began with, ")


def test_eval_says_how_far_it_is_over_both_of_its_halves(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, int, int]] = []
    dgpo.evaluate(finished_run, tell=lambda *progress: told.append(progress))
    assert told[0] == ("loading", 0, 0)
    sets, prompts = 2, 2
    evaluating = [(done, total) for phase, done, total in told if phase == "evaluating"]
    assert {total for _, total in evaluating} == {2 * sets * prompts}
    assert [done for done, _ in evaluating] == sorted(done for done, _ in evaluating)
    assert evaluating[-1][0] == 2 * sets * prompts
    assert main(["eval", str(finished_run)]) == 0
    assert "  evaluating 0/8 images\n" in capsys.readouterr().err


def test_the_table_is_readable(finished_run: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = command("eval", finished_run, "--eval-images-per-prompt", "2", "--no-compare").splitlines()
    assert "iteration-00000" in lines[0]
    (header,) = (line.replace("┃", " ").split() for line in lines if "score" in line)
    assert header == ["score", "seen", "unseen"]
    rows = [line.replace("│", " ").split() for line in lines if "±" in line]
    table = {name: cells for name, *cells in rows}
    assert table.keys() == {"runs:colour", "drift"}
    assert table["runs:colour"][1] == "±"
    float(table["runs:colour"][0])


def test_the_table_counts_repeated_calls_and_missing_scores(
    finished_run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def troubled(*arguments):
        found = evaluate.evaluate(*arguments)
        return found._replace(
            metrics=found.metrics | {"eval/seen/reward/retries": 2.0, "eval/seen/reward/missing": 1.0}
        )

    monkeypatch.setattr(tools, "evaluate_model", troubled)
    words = ("eval", finished_run, "--eval-images-per-prompt", "2")
    rows = [line.replace("│", " ").split() for line in command(*words, "--no-compare").splitlines()]
    assert ["reward/retries", "2"] in rows
    assert ["reward/missing", "1"] in rows
    compared = [line.replace("│", " ").split() for line in command(*words).splitlines()]
    assert ["reward/retries", "2", "2"] in compared, "counts before and after, of which no change is told"


@pytest.mark.slow
def test_eval_of_a_model_needs_no_run(tiny_folder: Path, command: Command) -> None:
    words = "--rewards runs:colour=1 --eval-rewards --eval-prompts mine=mine.txt --sampling.num-inference-steps 2"
    Path("mine.txt").write_text("a cat\na dog\n")
    out = command("eval", tiny_folder, *words.split(), "--finetune", "lora")
    assert "as pretrained" in " ".join(out.split())
    assert "±" in out
    assert "before" not in out


@pytest.mark.slow
def test_a_run_whose_updates_split_groups_is_scored_like_any(
    finished_run: Path, tmp_path: Path, command: Command
) -> None:
    stored = load_yaml(finished_run / "config.yaml")
    split = replace(stored, algorithm=FlowGRPO(), updates_per_rollout=2, split_updates=True)
    shutil.copytree(finished_run, tmp_path / "split")
    (tmp_path / "split" / "config.yaml").unlink()
    save_yaml(split, tmp_path / "split" / "config.yaml")
    assert command("eval", tmp_path / "split") == command("eval", finished_run).replace(
        str(finished_run), str(tmp_path / "split")
    )


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        ("--prompts mine.txt", "give --eval-prompts test=FILE"),
        ("--sampling.resolution 16", "--resolution"),
        ("--sampling.num-inference-steps 3", "--sampling.eval-num-inference-steps, which is 10"),
        ("--sampling.num_inference_steps=3 --sampling.eval-num-inference-steps 4", "which is 4"),
        ("--sampling.guidance-scale 2 --sampling.eval-guidance-scale 3", "--sampling.eval-guidance-scale, which is 3"),
    ],
)
def test_eval_refuses_a_setting_that_only_rollouts_have(command: Command, words: str, instead: str) -> None:
    message = command("eval", "tiny-sd3", *words.split(), code=2)
    assert f"{words.split()[0].partition('=')[0].replace('_', '-')} " in message
    assert instead in message


@pytest.mark.parametrize(
    "words", ["--iterations 4", "--out evalout", "--optimizer.lr=3", "--group_size 2", "--gradient-checkpointing"]
)
def test_eval_refuses_a_setting_of_training(command: Command, words: str) -> None:
    message = command("eval", "tiny-sd3", "--seed", "1", *words.split(), code=2)
    assert f"{words.replace('=', ' ').split()[0].replace('_', '-')} is of training" in message


def test_every_field_that_eval_reads_exists() -> None:
    assert {*READ} <= {field.name for field in fields(Config)}


def test_eval_refuses_what_it_cannot_score(finished_run: Path, tiny_folder: Path, command: Command) -> None:
    assert "eval_prompts is empty" in command("eval", finished_run, "--eval-prompts", code=2)
    Path("mine.txt").write_text("a cat\n")
    one_set = ("--eval-prompts", "mine=mine.txt")
    assert "rewards is empty" in command("eval", tiny_folder, *one_set, code=2)
    assert "include" in command("eval", tiny_folder, *one_set, "--rewards", "shapes", code=2)
    assert "there is no folder" in command("eval", "no/such/run", code=2)


def test_a_run_from_another_folder_names_the_one_it_began_in(
    tiny_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine.txt").write_text("a cat\n")
    rewards = {"brightness": 1.0}
    config = small(tiny_folder, Path("run"), iterations=1, eval_every=1, prompts="mine.txt", rewards=rewards)
    run(config, reward_functions={})
    began = Path.cwd()
    elsewhere = began / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for words in (["eval", "../run"], ["collect", "../run", "--groups", 1], ["train", "--resume", "../run"]):
        message = command(*words, code=2)
        assert f"'mine.txt'; it is looked up from the current folder, {elsewhere}" in message
        assert "If the run ../run names it, go on from the folder where that run began" in message
    assert "that run began" not in command("sample", "tiny-sd3", "--prompts", "mine.txt", code=2)


@pytest.mark.parametrize(("best", "taken"), [(1, 1), (2, 2), (0, 2), (-1, 2)])
def test_a_runs_best_weights_are_taken_or_else_its_newest(
    best: int, taken: int, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "read_state", lambda path: {"best_iteration": best})
    model, name = load_trained(str(finished_run), load_yaml(finished_run / "config.yaml"))
    assert f"iteration-00000{taken} ({'best' if best == taken else 'newest'})" in name
    expected = load_file(finished_run / "checkpoints" / f"iteration-00000{taken}" / "ema.safetensors")
    found = model.weights.tensors("ema")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("source", ["run", "run/checkpoints/iteration-000002"])
def test_a_run_stopped_before_an_evaluation_is_drawn_with_its_newest_weights(
    source: str, tiny_folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its only evaluation is that of the weights it began with, and a comparison would be of those with themselves."""
    Path("prompts.txt").write_text("a cat\n")
    config = small(tiny_folder, Path("run"), eval_every=10, eval_prompts={"seen": "prompts.txt"}, num_samples=1)
    assert run(config, callbacks=[StopAfter(2)]).interrupted
    before, after = dgpo.sample(source, prompts=["a cat"], images=1, compare=True)
    assert not torch.equal(before, after)
    _, name = load_trained(source, load_yaml(Path("run/config.yaml")))
    why = " (newest; no evaluation has followed its training yet)" if source == "run" else ""
    assert name == f"run/checkpoints/iteration-000002{why}"
    capsys.readouterr()
    assert main(["sample", source, "--prompt", "cat", "--images", "1"]) == 0
    said = capsys.readouterr().err
    assert f"weights: {name}" in said
    assert "warning" not in said


def test_weights_that_no_training_improved_are_used_with_a_warning(
    tiny_folder: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text("a cat\n")
    config = small(tiny_folder, Path("run"), iterations=1, eval_every=1, eval_prompts={"seen": "prompts.txt"})
    calls: list[int] = []

    def falling(images: torch.Tensor, prompts: object, metadata: object) -> torch.Tensor:
        calls.append(1)
        return images.mean((1, 2, 3)) - len(calls)

    run(config, reward_functions={"colour": falling})
    capsys.readouterr()
    dgpo.sample("run", prompts=["cat"], images=1, compare=True)
    said = capsys.readouterr().err
    assert "no evaluation of run was better than the one before training" in said
    assert "name their checkpoint: run/checkpoints/iteration-000001" in said
    assert not Path("run/best").exists(), "nothing was trained there"


def test_functions_of_python_score_a_run_that_was_trained_with_them(tiny_folder: Path, command: Command) -> None:
    Path("prompts.txt").write_text("a cat\n")
    config = small(tiny_folder, Path("run"), iterations=1, eval_every=1, eval_prompts={"seen": "prompts.txt"})
    run(config)
    message = command("eval", "run", code=2)
    assert "unknown reward 'colour'" in message
    assert "--rewards my_rewards:colour" in message
    assert "reward_functions={'colour': FUNCTION} of dgpo.train, dgpo.evaluate and dgpo.collect" in message
    found = dgpo.evaluate("run", reward_functions=REWARDS)
    assert found.metrics["eval/seen/colour"] == found.metrics["eval/seen/reward"]
    assert dgpo.collect("run", groups=1, out="groups", reward_functions=REWARDS).groups == 1
    other = {"color": REWARDS["colour"]}
    for call in (dgpo.evaluate, partial(dgpo.collect, groups=1, out="others")):
        with pytest.raises(dgpo.UserError, match="reward_functions gives 'color', which neither rewards nor"):
            call("run", reward_functions=other)


def test_best_weights_that_alarmed_say_so(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"best_iteration": 2, "best_alarmed": True}
    monkeypatch.setattr(checkpoint, "read_state", lambda path: told)
    _, name = load_trained(str(finished_run), load_yaml(finished_run / "config.yaml"))
    assert name.endswith("iteration-000002 (best, but held-out scores fell: see the report)")


def test_sample_draws_a_row_for_each_prompt_and_replaces_nothing(finished_run: Path, command: Command) -> None:
    words = ("sample", finished_run, "--prompt", "a cat", "two dogs", "--images", "3", "--out", "new/cats.png")
    assert command(*words).split() == ["new/cats.png"]
    picture = Image.open("new/cats.png")
    assert picture.size == (4 + 3 * (128 + 4), 4 + 2 * (17 + 128 + 4)), "each row below its prompt"
    before = Path("new/cats.png").read_bytes()
    assert "new/cats.png exists and is not replaced" in command(*words, code=2)
    assert Path("new/cats.png").read_bytes() == before


def test_sample_writes_a_folder_that_score_reads_with_the_grid_beside_it(finished_run: Path, command: Command) -> None:
    Path("more.jsonl").write_text('{"prompt": "a cup", "tag": "cups"}\n')
    words = "--prompts more.jsonl --images 2 --out new/cats --prompt"
    assert command("sample", finished_run, *words.split(), "a cat").split() == ["new/cats.png", "new/cats"]
    assert sorted(path.name for path in Path("new").iterdir()) == ["cats", "cats.png"]
    names = ["0-0.png", "0-0.txt", "0-1.png", "0-1.txt", "1-0.png", "1-0.txt", "1-1.png", "1-1.txt", "metadata.jsonl"]
    assert sorted(path.name for path in Path("new/cats").iterdir()) == names
    drawn = dgpo.sample(finished_run, prompts=["a cat", "a cup"], images=2)
    picture = load_images([Path("new/cats/1-0.png")])[0]
    assert (picture - drawn[1, 0]).abs().max() <= 0.5 / 255 + 1e-6
    command("score", "new/cats", "--rewards", "brightness")
    lines = [json.loads(line) for line in Path("new/cats/scores.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["0-0.png", "0-1.png", "1-0.png", "1-1.png"]
    assert [line["prompt"] for line in lines] == ["a cat", "a cat", "a cup", "a cup"]
    assert "new/cats exists and is not replaced" in command("sample", finished_run, *words.split(), "a cat", code=2)


def test_compare_draws_what_the_run_began_with_from_the_same_noise(
    finished_run: Path, tiny_folder: Path, command: Command
) -> None:
    prompts = ["cat", "two dogs"]
    before, after = dgpo.sample(finished_run, prompts=prompts, images=2, compare=True)
    assert torch.equal(after, dgpo.sample(finished_run, prompts=prompts, images=2))
    sampling = load_yaml(finished_run / "config.yaml").sampling
    base = dgpo.Config(model=str(tiny_folder), sampling=sampling, algorithm=dgpo.AWM(), device="cpu")
    torch.testing.assert_close(before, dgpo.sample(tiny_folder, base, prompts=prompts, images=2))
    assert not torch.equal(before, after)
    assert command("sample", finished_run, "--prompt", *prompts, "--images", "2", "--compare").split() == [
        "samples.png",
        "samples",
    ]
    for name, pictures in (("before", before), ("after", after)):
        shown = load_images(find_pictures(Path("samples") / name))
        assert (shown - pictures.flatten(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    width, height = Image.open("samples.png").size
    assert (width > height / 2, height) == (True, 4 * (128 + 4) + 4 + 2 * 17)  # two rows below each prompt's text


def test_a_model_has_no_before_and_after(tiny_folder: Path, command: Command) -> None:
    message = command("sample", tiny_folder, "--prompt", "cat", "--compare", code=2)
    assert "is a model, which has no before and after" in message
    assert not list(Path().iterdir())


def test_commands_that_draw_say_how_far_they_are(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, phases in (
        ("sample RUN --prompt cat --images 3 --compare", ["loading", "encoding 0/1 prompts", "sampling 0/6 images"]),
        ("collect RUN --groups 2", ["loading", "sampling 0/6 images"]),
    ):
        capsys.readouterr()
        assert main([str(finished_run) if word == "RUN" else word for word in words.split()]) == 0
        said = capsys.readouterr().err
        assert [line.strip() for line in said.splitlines() if line.startswith("  ")] == phases


@pytest.mark.slow
def test_sampling_depends_on_its_arguments_alone(finished_run: Path, command: Command) -> None:
    pictures = {}
    for name, words in (
        ("first", ""),
        ("again", ""),
        ("seed", "--seed 7"),
        ("guidance", "--guidance-scale 1"),
        ("steps", "--num-inference-steps 2"),
    ):
        command("sample", finished_run, "--prompt", "cat", "--images", "1", "--out", f"{name}.png", *words.split())
        pictures[name] = Path(f"{name}.png").read_bytes()
    assert pictures["first"] == pictures["again"]
    assert len(set(pictures.values())) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "there is nothing to draw"),
        ("--prompt cat --images 0", "there is nothing to draw"),
        ("--prompt cat --out cat.jpeg", "cat.jpeg would be no PNG"),
        ("--prompt cat --out file/cat.png", "cannot make the folder of file/cat.png"),
        ("--prompt cat --num-inference-steps 0", "num_inference_steps=0 cannot work"),
        ("--prompt cat --guidance-scale nan", "guidance_scale=nan cannot work: it must be finite"),
        ("--prompt cat --guidance-scale 0", "guidance_scale=0.0 cannot work"),
        ("--prompt cat --prompt dog", "--prompt is given twice; give it once, with all its values behind it"),
        ("--prompt cat --sed 3", "Did you mean 'seed'?"),
    ],
)
def test_sample_refuses(words: str, message: str, tiny_folder: Path, command: Command) -> None:
    Path("file").touch()
    assert message in command("sample", tiny_folder, *words.split(), code=2)
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_run_without_checkpoints_has_nothing_to_show(finished_run: Path, command: Command) -> None:
    young = shutil.copytree(finished_run, "young", ignore=shutil.ignore_patterns("checkpoints"))
    for words in (("eval", young), ("sample", young, "--prompt", "cat")):
        assert "young holds no checkpoint yet" in command(*words, code=2)
    assert not Path("samples.png").exists()
    assert not Path("samples").exists()
