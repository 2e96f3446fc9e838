import json
import re
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import toy
from pages import Reader
from runs import run, small
from synthetic import CONFIG, PROMPTS, make_run

from dgpo.algorithms.registry import BUILT_IN
from dgpo.errors import UserError
from dgpo.report import sections
from dgpo.report.grids import read_samples, write_samples
from dgpo.report.health import HEALTH
from dgpo.report.log import from_rows, read_log
from dgpo.report.page import render, write_report
from dgpo.report.pictures import pictures
from dgpo.run.callbacks import Callback, Evaluated, Progress
from dgpo.utils.imports import import_named


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "whole", iterations=4, eval_every=2)


def test_the_whole_page_stands_alone(run_dir: Path):
    page = write_report(run_dir)
    assert page == run_dir / "report.html"
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert reader.headings == [
        "tiny",
        "Same prompts, same noise",
        "Reward and evaluation",
        "By task",
        "Health of the training",
        "Where the time goes",
        "Configuration",
        "Environment",
    ]
    loaded = [address for address in reader.addresses if not address.startswith("data:")]
    assert loaded == ["https://arxiv.org/abs/1812.06162"], "only a link to read, nothing to load"
    assert "<script" not in text
    assert "url(http" not in text
    assert text.count("data:image/png;base64,") == 2 * len(PROMPTS)
    for words in (
        "Improved.",
        "shapes_strict",
        "seen prompts",
        "only watched",
        "the base model's loss on the pictures",
        "clip_range",
        "0a1b2c3",
        "single_object",
        "95 %: −0.030 to +0.010",
    ):
        assert words in reader.words
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", text)) - {"--c", "--tone"}
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", text))


def test_a_run_just_started_has_a_page_too(run_dir: Path, tmp_path: Path):
    shutil.copy(run_dir / "config.yaml", tmp_path)
    reader = Reader(render(tmp_path))
    assert reader.headings == ["tiny", "Configuration"]
    assert "Nothing logged yet" in reader.words
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "time/rollout": 1.0, "train/loss": 0.1}\n{"iter')
    reader = Reader(render(tmp_path))
    assert reader.headings == ["tiny", "Where the time goes", "Configuration"]


def test_prompts_and_settings_are_text_never_markup(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("name: '<script>alert(1)</script>'\n")
    write_samples(tmp_path, 0, torch.zeros(1, 3, 8, 8), ['a "<b>bold</b>" sign'])
    page = render(tmp_path)
    assert "<script" not in page
    assert "<b>bold" not in page
    assert 'a "<b>bold</b>" sign' in Reader(page).words


def test_no_run_folder_is_one_clear_message_and_no_file(tmp_path: Path):
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_pictures_show_the_first_and_the_last_and_shrink_large_ones(tmp_path: Path):
    write_samples(tmp_path, 0, torch.zeros(4, 3, 8, 8), ["a", "b"])
    write_samples(tmp_path, 5, torch.rand(4, 3, 8, 8), ["a", "b"])
    write_samples(tmp_path, 10, torch.ones(4, 3, 500, 600), ["a", "b"])
    shown = pictures(read_samples(tmp_path), {})
    assert shown is not None
    assert (shown.iterations, shown.images_per_prompt, shown.prompts) == ([0, 10], 2, 2)
    assert [(prompt, [len(row.tiles) for row in rows]) for prompt, rows in shown.cards] == [
        ("a", [2, 2]),
        ("b", [2, 2]),
    ]
    before, after = shown.cards[0][1]
    assert before.tiles[1].image.startswith("data:image/png")
    assert after.tiles[1].image.startswith("data:image/webp")
    assert before.tiles[0].mark is None


def test_a_tick_stands_below_each_picture_that_is_right(tmp_path: Path):
    """Two prompts of two pictures: one of four is right before, three are after."""
    for iteration, right in ((0, [0.0, 1.0, 0.0, 0.0]), (10, [1.0, 1.0, 0.0, 1.0])):
        scores = {"shapes": torch.tensor([0.5, 1.0, 0.5, 1.0]), "shapes_strict": torch.tensor(right)}
        write_samples(tmp_path, iteration, torch.zeros(4, 3, 8, 8), ["a", "b"], scores | {"reward": scores["shapes"]})
    (tmp_path / "config.yaml").write_text("rewards: {shapes: 0.5, shapes_strict: 0.5}")
    shown = pictures(read_samples(tmp_path), {"rewards": {"shapes": 0.5, "shapes_strict": 0.5}})
    assert shown is not None
    marks = [["".join(tile.mark.text for tile in row.tiles if tile.mark) for row in rows] for _, rows in shown.cards]
    assert marks == [["✗✓", "✓✓"], ["✗✗", "✗✓"]]
    words = " ".join(Reader(render(tmp_path)).words.split())
    assert "2 prompts, the first of the evaluation list, with 2 pictures each." in words
    assert "✓ and ✗ say whether shapes_strict is 1 or 0. Right: 1 of 4 → 3 of 4." in words


def test_time_is_split_over_the_whole_run():
    row = {"train/loss": 0.0, "time/rollout": 2.0, "time/update": 1.0, "time/iteration": 3.2}
    log = from_rows([row | {"iteration": 1}, row | {"iteration": 2, "time/elapsed": 8.0}])
    phases = {phase.name: (phase.seconds, phase.share) for phase in sections.times(log)}
    assert phases == {"rollout": (2.0, 0.5), "update": (1.0, 0.25), "other": (1.0, 0.25)}


def test_evaluations_lie_between_the_iterations_and_the_bar_adds_up():
    row = {"train/loss": 0.0, "time/rollout": 2.0, "time/update": 0.5}
    evaluated = {"iteration": 2, "time/eval": 3.0}
    log = from_rows([row | {"iteration": i, "time/elapsed": 3.0 * i} for i in (1, 2)] + [evaluated])
    phases = sections.times(log)
    assert {phase.name: phase.seconds for phase in phases} == {
        "rollout": 2.0, "update": 0.5, "other": 0.5, "evaluation": 1.5
    }  # fmt: skip
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert sum(phase.percent for phase in phases) == 100


def test_every_health_chart_has_a_line_of_help(run_dir: Path):
    panels = sections.health(read_log(run_dir / "metrics.jsonl"), CONFIG)
    assert all(panel.note.endswith(".") for panel in panels)


def test_nothing_is_shown_that_is_off():
    log = from_rows({"iteration": i, "train/clip_fraction": 0.0, "train/loss": 0.1} for i in range(3))
    unclipped = sections.health(log, {"algorithm": {"name": "dgpo", "clip_range": None}})
    assert [panel.title for panel in unclipped] == ["loss"]
    clipped = sections.health(log, {"algorithm": {"name": "dgpo", "clip_range": 0.01}})
    assert [panel.title for panel in clipped] == ["clip_fraction", "loss"]


@pytest.mark.parametrize("path", BUILT_IN.values(), ids=BUILT_IN)
def test_every_metric_of_every_algorithm_is_explained(path: str):
    _, history = toy.train(import_named(path, "algorithm")(), iterations=1)
    assert set(history[-1]) - {"reward_mean"} <= set(HEALTH)


def test_rewards_at_work_beside_the_sampling_are_no_part_of_the_wall_time(tmp_path: Path):
    row = {"train/loss": 0.0, "time/rollout": 2.0, "time/reward": 0.5, "time/reward_busy": 1.75, "time/update": 1.5}
    lines = [json.dumps(row | {"iteration": i, "time/elapsed": 4.0 * i}) for i in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    log = read_log(tmp_path / "metrics.jsonl")
    phases = sections.times(log)
    assert {phase.name: phase.seconds for phase in phases} == {"rollout": 2.0, "reward": 0.5, "update": 1.5}
    assert sum(phase.share for phase in phases) == 1
    assert sections.reward_seconds(log) == 1.75
    (tmp_path / "config.yaml").write_text("name: x")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "An iteration took 4.00 s" in page
    assert "The rewards worked for 1.75 s of it" in page
    assert "reward busy" not in page


def test_task_bars_and_their_scale(run_dir: Path):
    log = read_log(run_dir / "metrics.jsonl")
    charts = sections.tasks(log, CONFIG)
    assert [(name.eval_set, name.score, len(bars)) for name, bars in charts] == [
        ("seen", "shapes_strict", 6),
        ("unseen", "shapes_strict", 6),
    ]
    single_object = charts[0][1][0]
    assert single_object.before == pytest.approx(0.8)
    assert single_object.after == 1.0
    below = from_rows({"iteration": i, "eval/s/r": 0.0, "eval/s/r/a": value} for i, value in enumerate((-1.0, 3.0)))
    (bar,) = sections.tasks(below, {})[0][1]
    assert (bar.before, bar.after) == (0.0, 1.0)


def test_entries_of_a_rewards_dict_are_no_tasks():
    scores = ("ocr", "ocr/short", "ocr/exact", "reward", "reward/short")
    log = from_rows({"iteration": i} | {f"eval/seen/{score}": 0.3 + i for score in scores} for i in range(2))
    charts = sections.tasks(log, {"rewards": {"ocr": 1.0}})
    assert [(name.score, [bar.change.name.tag for bar in bars]) for name, bars in charts] == [("ocr", ["short"])]


def test_nested_settings_become_one_table_each():
    tree = {"seed": 0, "lora": {"rank": 4, "on": {"attn": ["q", "k"]}}, "note": None}
    assert sections.tables(tree) == [
        ("", [("seed", "0"), ("note", "–")]),
        ("lora", [("rank", "4"), ("on.attn", "q, k")]),
    ]


def test_a_run_writes_its_page_at_every_evaluation(tiny_folder: Path, tmp_path: Path):
    """The page of an evaluation shows that evaluation."""

    class Pages(Callback):
        seen: ClassVar[dict[int, str]] = {}

        def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
            self.seen[run.iteration] = (run.folder / "report.html").read_text(encoding="utf-8")

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na green cat\n")
    config = small(
        tiny_folder, tmp_path / "run", iterations=2, eval_every=1, eval_prompts={"seen": str(prompts)}, num_samples=4,
        eval_images_per_prompt=2, report=True,
    )  # fmt: skip
    run(config, callbacks=[Pages()])
    assert [*Pages.seen] == [0, 1, 2]
    assert all(f"iteration {last}</small>" in page for last, page in Pages.seen.items())
    assert "the first of the evaluation list, with 2 pictures each." in Pages.seen[2]
    assert "The number under a picture is its <code>reward</code>. Mean:" in Pages.seen[2]


def test_what_a_run_cost_is_no_health():
    log = from_rows({"iteration": i, "train/forwards": 10 * i, "train/loss": 0.1} for i in range(3))
    assert [panel.title for panel in sections.health(log, {})] == ["loss"]


def test_one_reward_is_shown_once():
    row = {"eval/a/yellow": 0.5, "eval/a/reward": 0.5, "train/reward_mean": 0.5, "train/score/yellow": 0.5}
    log = from_rows({"iteration": i, **row} for i in range(3))
    config = {"rewards": {"yellow": 1.0}}
    assert [score for score, _ in sections.scores(log, config)] == ["yellow"]
    assert [(panel.title, panel.kind) for panel in sections.curves(log, config)] == [
        ("yellow", "training"),
        ("yellow", "trained"),
    ]
