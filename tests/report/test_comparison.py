"""The page that compares runs: what they share, what is paired, what a reader sees and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pages import Reader
from synthetic import CONFIG, PROMPTS, make_run

import dgpo
from dgpo.commands.main import main
from dgpo.data.prompts import PromptSet
from dgpo.errors import UserError
from dgpo.report.comparison import compare, curves, notes, pictures, render, scores, settings
from dgpo.report.log import read_log
from dgpo.report.several import common_scores, common_sets, differences, read_runs
from dgpo.run import prompt_lists
from dgpo.run.changes import LAST_EVALUATION, changes, write_kept

SETS = {"seen": "shapes:seen", "unseen": "shapes:unseen"}


def made(folder: Path, gain: float = 0.4, **fields: Any) -> Path:
    """A synthetic run whose config has evaluation sets and these fields."""
    make_run(folder, iterations=4, eval_every=2, gain=gain)
    config = {**CONFIG, "eval_prompts": SETS, "eval_images_per_prompt": 2, **fields}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def keep(folder: Path, values: torch.Tensor, iteration: int = 4) -> Path:
    """Give a run the scores of its last evaluation's prompts."""
    write_kept(folder / LAST_EVALUATION, iteration, {"seen/shapes": values}, {"seen": torch.arange(len(values)) // 2})
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [made(tmp_path / "a"), made(tmp_path / "b", gain=-0.2, optimizer={"lr": 1e-3, "betas": [0.9, 0.999]})]


def test_the_page_shows_both_runs_and_stands_alone(pair: list[Path], tmp_path: Path) -> None:
    page = dgpo.compare(pair, out=tmp_path / "new" / "page.html")
    assert page == tmp_path / "new" / "page.html"
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert reader.headings == [
        *("2 runs compared", "Last scores", "Same prompts, same noise", "Evaluation", "Settings that differ"),
    ]
    assert all(address.startswith("data:") for address in reader.addresses)
    assert "<script" not in text
    for words in (
        "compared with a",
        "shapes_strict on unseen",
        "over iterations",
        "over thousands of network forwards",
        "over seconds of training",
        "optimizer.lr",
    ):
        assert words in reader.words
    assert re.search(r"<td>network forwards</td>.*?4,800.*?4,800.*?</tr>", text)
    with pytest.raises(UserError, match=r"page\.html exists and is not replaced; choose another --out"):
        compare(pair, page)
    assert page.read_text(encoding="utf-8") == text


def test_every_score_is_drawn_for_all_runs_in_the_same_charts(pair: list[Path]) -> None:
    runs = read_runs(pair)
    drawn = [*curves(runs, common_scores(runs, common_sets(runs)))]
    assert {(panel.name.eval_set, panel.name.score) for panel in drawn} == {
        (name, score) for name in SETS for score in ("shapes", "shapes_strict", "crispness", "diversity", "drift")
    }
    assert [panel.kind for panel in drawn] == ["trained"] * 4 + [panel.kind for panel in drawn[4:]]
    for panel in drawn:
        axes = ["over iterations", "over thousands of network forwards", "over seconds of training"]
        assert [label for label, _ in panel.charts] == axes
        for _, svg in panel.charts:
            assert re.findall(r'font-weight="bold" fill="var\((--series-\d)\)">(\w)<', svg) in (
                [("--series-1", "a"), ("--series-2", "b")],
                [("--series-2", "b"), ("--series-1", "a")],
            )
    log = read_log(pair[0] / "metrics.jsonl")
    for chart, key, unit in ((1, "train/forwards", 1000), (2, "time/elapsed", 1)):
        points = [float(point) for point in re.findall(r"<title>(\S+): ", drawn[0].charts[chart][1])]
        evaluated = [p.value / unit for p in log.series(key) if p.iteration % 2 == 0]
        assert points[: len(evaluated)] == evaluated


def test_a_run_of_before_forwards_were_counted_has_the_other_axes(pair: list[Path]) -> None:
    path = pair[1] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"train/forwards"', '"train/other"'))
    runs = read_runs(pair)
    (panel, *_) = curves(runs, common_scores(runs, common_sets(runs)))
    names = [re.findall(r'font-weight="bold"[^>]*>(\w)<', svg) for _, svg in panel.charts]
    assert [sorted(found) for found in names] == [["a", "b"], ["a"], ["a", "b"]]
    assert re.search(r"<td>network forwards</td>.*?4,800.*?–.*?</tr>", render(runs))
    for run in runs:
        run.log.columns.pop("train/forwards", None)
    (panel, *_) = curves(runs, common_scores(runs, common_sets(runs)))
    assert [label for label, _ in panel.charts] == ["over iterations", "over seconds of training"]


def test_a_difference_is_the_runs_own_paired_statistic(pair: list[Path]) -> None:
    first, other = torch.rand(40, generator=torch.Generator().manual_seed(0)), torch.full((40,), 0.5)
    runs = read_runs([keep(pair[0], first), keep(pair[1], other)])
    expected = changes({"seen/shapes": first}, {"seen/shapes": other}, {"seen": torch.arange(40) // 2})
    assert differences(*runs) == expected
    table = {row.name.key: row for row in scores(runs, common_scores(runs, ["seen"]))}
    (change,) = table["eval/seen/shapes"].changes
    assert change is not None
    assert change.interval == (expected["eval/seen/shapes/change_low"], expected["eval/seen/shapes/change_high"])
    assert change.delta == pytest.approx(runs[1].log.series(change.name.key)[-1].value - change.first.value)
    (bare,) = table["eval/seen/shapes_strict"].changes
    assert bare is not None
    assert (bare.interval, bare.noise) == (None, pytest.approx(2 * 2**0.5 * 0.02)), "an upper bound without an interval"


def test_scores_of_an_evaluation_that_the_log_does_not_end_with_are_not_taken(pair: list[Path]) -> None:
    values = torch.rand(40)
    runs = read_runs([keep(pair[0], values), keep(pair[1], values, iteration=3)])
    assert differences(*runs) == {}


@pytest.mark.parametrize("fields", [{"seed": 1}, {"eval_images_per_prompt": 3}, {"eval_images": {"seen": 3}}])
def test_runs_of_different_noise_are_not_paired_and_the_page_says_so(fields: dict[str, Any], tmp_path: Path) -> None:
    values = torch.rand(40)
    runs = read_runs([keep(made(tmp_path / "a"), values), keep(made(tmp_path / "b", **fields), values)])
    assert differences(*runs) == {}
    assert all(row.changes == [None] for row in scores(runs, common_scores(runs, ["seen"])))
    assert [*notes(runs, [*SETS])] == [
        f"b and a differ in {next(iter(fields))}. Their evaluations come from different noise, so no paired difference "
        "is shown."
    ]
    text = render(runs)
    assert "same noise</h2>" not in text
    assert "from different noise" in text


def test_runs_of_versions_without_a_field_are_paired_with_those_that_leave_it_empty(tmp_path: Path) -> None:
    values = torch.rand(40)
    runs = read_runs([keep(made(tmp_path / "a"), values), keep(made(tmp_path / "b", eval_images={}), values + 1)])
    assert differences(*runs)["eval/seen/shapes/change"] == pytest.approx(1)


def test_sets_are_common_by_name_and_source_and_own_prompts_by_theirs(tmp_path: Path) -> None:
    def shared(**fields: Any) -> list[str]:
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        return common_sets(read_runs([tmp_path / "a", made(tmp_path / "b", **fields)]))

    made(tmp_path / "a", eval_prompts={"seen": "prompts:held_out", "unseen": "x.txt"}, prompts="mine.txt")
    own = {"seen": "prompts:held_out", "unseen": "x.txt"}
    assert shared(eval_prompts=own, prompts="mine.txt") == ["seen", "unseen"]
    assert shared(eval_prompts=own, prompts="others.txt") == ["unseen"]
    assert shared(eval_prompts=own, prompts="mine.txt", seed=1) == ["unseen"]
    assert shared(eval_prompts={"seen": "y.txt", "unseen": "x.txt"}) == ["unseen"]
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    assert "Evaluation sets that not all runs have with the same prompts are left out: seen." in [
        *notes(runs, ["unseen"])
    ]
    with pytest.raises(
        UserError, match=r"no evaluation set in common: a has seen=prompts:held_out, unseen=x.txt; b has"
    ):
        shared()


def test_a_set_whose_file_had_other_prompts_is_not_common(tmp_path: Path) -> None:
    """As far as both runs say which prompts they evaluated: those of earlier versions do not."""
    a, b = made(tmp_path / "a"), made(tmp_path / "b")
    seen, unseen = (PromptSet([text], [{}]) for text in ("a cat", "a dog"))
    prompt_lists.keep(a, prompt_lists.hashes({"seen": seen, "unseen": unseen}, seen))
    assert common_sets(read_runs([a, b])) == ["seen", "unseen"]
    prompt_lists.keep(b, prompt_lists.hashes({"seen": seen, "unseen": seen}, seen))
    assert common_sets(read_runs([a, b])) == ["seen"]
    prompt_lists.keep(b, prompt_lists.hashes({"seen": unseen}))
    with pytest.raises(UserError, match="Sets are the same if name, source and prompts are"):
        common_sets(read_runs([a, b]))


def test_a_sum_of_other_rewards_is_left_out(tmp_path: Path) -> None:
    def with_reward(folder: Path, **fields: Any) -> Path:
        made(folder, **fields)
        text = (folder / "metrics.jsonl").read_text()
        (folder / "metrics.jsonl").write_text(
            text.replace('"eval/seen/shapes":', '"eval/seen/reward": 0.5, "eval/seen/shapes":')
        )
        return folder

    a, b = with_reward(tmp_path / "a"), with_reward(tmp_path / "b")
    c = with_reward(tmp_path / "c", rewards={"shapes": 0.5})
    assert "reward" in {name.score for name in common_scores(read_runs([a, b]), ["seen"])}
    runs = read_runs([a, c])
    assert "reward" not in {name.score for name in common_scores(runs, ["seen"])}
    assert any("trained on different rewards" in note for note in notes(runs, [*SETS]))


def test_settings_that_differ_are_told_by_field(pair: list[Path]) -> None:
    runs = read_runs(pair)
    assert settings(runs) == [("optimizer.lr", ["0.0003", "0.001"])]
    assert settings([runs[0], runs[0]._replace(config={**runs[0].config, "name": "x", "out": "y", "shift": 3})]) == [
        ("shift", ["–", "3"])
    ]


def test_pictures_are_the_last_of_the_first_prompts(pair: list[Path]) -> None:
    runs = read_runs(pair)
    found = pictures(runs)
    assert found is not None
    assert [prompt for prompt, _ in found.cards] == PROMPTS[: len(found.cards)]
    assert {row.iteration for _, rows in found.cards for _, row in rows} == {4}
    assert [run.label for run, _ in found.cards[0][1]] == ["a", "b"]
    samples = runs[1].samples
    assert samples is not None
    others = runs[1]._replace(samples=samples._replace(prompts=[PROMPTS[0], *reversed(PROMPTS[1:])]))
    fewer = pictures([runs[0], others])
    assert fewer is not None
    assert [prompt for prompt, _ in fewer.cards] == PROMPTS[:1]
    assert pictures([runs[0], runs[1]._replace(samples=None)]) is None


def test_runs_of_one_folder_name_are_told_apart_by_their_places(tmp_path: Path) -> None:
    runs = read_runs([made(tmp_path / "x" / "tiny"), made(tmp_path / "y" / "tiny")])
    assert [run.label for run in runs] == [str(tmp_path / "x" / "tiny"), str(tmp_path / "y" / "tiny")]
    text = render(runs)
    assert f"…{str(tmp_path / 'x' / 'tiny')[-15:]}</text>" in text


def test_what_is_no_run_or_has_no_evaluation_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, page = made(tmp_path / "good"), tmp_path / "page.html"
    empty = made(tmp_path / "empty")
    (empty / "metrics.jsonl").write_text("")
    for other, message in (
        (tmp_path / "none", "none is no run folder: it has no config.yaml"),
        (empty, "empty holds no evaluation yet, so there is nothing to compare"),
        (good, "comparing takes two different run folders or more"),
    ):
        assert main(["compare", str(good), str(other), "--out", str(page)]) == 2
        assert message in capsys.readouterr().err
    assert not page.exists()
    assert main(["compare", str(good), str(made(tmp_path / "b")), f"--out={page}"]) == 0
    assert capsys.readouterr().out == f"{page}\n"


def test_a_run_keeps_what_it_is_compared_by(finished_run: Path, tmp_path: Path) -> None:
    """The same run twice differs by nothing, in every score that it logs."""
    again = shutil.copytree(finished_run, tmp_path / "again")
    runs = read_runs([finished_run, again])
    found = differences(*runs)
    assert found.keys() == {
        f"eval/{name}/{score}/change" for name in ("seen", "unseen") for score in ("runs:colour", "reward", "drift")
    }
    assert set(found.values()) == {0.0}
