"""What is watched beside the reward: changes since the first evaluation, alarms, what they decide."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import assert_same_run, colour, rows, run, small
from safetensors.torch import load_file
from scipy.stats import t as students

from dgpo import UserError
from dgpo.core import seeds
from dgpo.report.changes import changes as reported
from dgpo.report.log import read_log
from dgpo.report.verdict import verdict
from dgpo.run import checkpoint
from dgpo.run.changes import ALARMS, MIN_PROMPTS, alarm, changes, compare, interval, read_kept, write_kept
from dgpo.training.metrics import note_evaluation
from dgpo.training.state import State

PROMPTS = [f"{word} {thing}" for word in ("a red", "two", "one green") for thing in ("cat", "cup", "bird")]


def draws(name, size=40):
    return torch.randn(size, generator=seeds.generator(0, name))


def test_the_interval_is_that_of_the_mean_and_repeats():
    """Against Student's interval, which holds for normal differences; constant ones have no width."""
    values = 0.3 + draws("interval", size=200)
    low, high = interval(values.double())
    exact = students.interval(0.95, 199, loc=values.mean().item(), scale=values.std().item() / 200**0.5)
    assert (low, high) == pytest.approx(exact, abs=0.01)
    assert interval(values.double()) == (low, high)
    assert interval(torch.full((9,), 0.25, dtype=torch.float64)) == (0.25, 0.25)


def test_prompts_are_paired():
    """Prompts differ by far more than what all of them lost: only the difference of each prompt tells."""
    hard = 10 * draws("hard")
    lost = 0.1 + 0.05 * draws("lost")
    found = changes({"seen/crispness": hard}, {"seen/crispness": hard - lost, "seen/new": hard})
    assert set(found) == {f"eval/seen/crispness/change{end}" for end in ("", "_low", "_high")}
    assert found["eval/seen/crispness/change"] == pytest.approx(-lost.mean().item(), abs=1e-5)
    assert found["eval/seen/crispness/change_high"] < 0
    unpaired = hard.std().item() * (2 / 40) ** 0.5
    assert found["eval/seen/crispness/change_high"] - found["eval/seen/crispness/change_low"] < unpaired / 20


def test_few_prompts_have_no_interval():
    """Prompts that a score does not concern are not counted."""
    few = torch.tensor([*range(MIN_PROMPTS - 1), math.nan, math.nan])
    assert changes({"seen/x": few}, {"seen/x": few + 1}) == {"eval/seen/x/change": 1.0}
    assert changes({"seen/x": few}, {"seen/x": torch.full((9,), math.nan)}) == {}


def test_the_first_evaluation_is_kept_exactly(tmp_path):
    """A run resumed from before it writes it again; later ones are compared with it."""
    path, first, later = tmp_path / "first", {"seen/x": draws("first")}, {"seen/x": draws("later")}
    assert compare(path, 0, later) == {}
    assert compare(path, 0, first) == {}
    assert compare(path, 5, later) == compare(path, 5, later) == changes(first, later)
    with pytest.raises(UserError, match="seen/x has 3 prompts, and had 40"):
        compare(path, 5, {"seen/x": draws("later", 3)})
    path.write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*first"):
        compare(path, 5, later)


def test_an_evaluation_is_kept_with_which_prompts_are_the_same(tmp_path):
    scores, distinct = {"seen/x": draws("first"), "seen/x/y": draws("later")}, {"seen": torch.arange(40) // 2}
    write_kept(tmp_path / "last", 7, scores, distinct)
    kept = read_kept(tmp_path / "last")
    assert kept is not None
    assert kept.iteration == 7
    assert kept.scores.keys() == scores.keys()
    assert torch.equal(kept.scores["seen/x/y"], scores["seen/x/y"])
    assert kept.distinct.keys() == distinct.keys()
    assert torch.equal(kept.distinct["seen"], distinct["seen"])
    assert read_kept(tmp_path / "none") is None


def moved(**intervals: tuple[float, float]) -> dict[str, float]:
    """Metrics of an evaluation; a double underscore stands for a slash."""
    found = {}
    for name, (low, high) in intervals.items():
        key = f"eval/{name.replace('__', '/')}/change"
        found |= {key: (low + high) / 2, f"{key}_low": low, f"{key}_high": high}
    return found


UP, DOWN, UNCLEAR = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3)


@pytest.mark.parametrize(
    ("metrics", "fell"),
    [
        (moved(seen__shapes=UP, seen__crispness=DOWN), ["crispness"]),
        (
            moved(seen__shapes=UP, seen__diversity=UP, unseen__crispness=DOWN, unseen__diversity=DOWN),
            ["crispness", "diversity"],
        ),
        (moved(seen__reward=UP, seen__crispness=DOWN), ["crispness"]),
        (moved(seen__shapes=UP, seen__crispness=UNCLEAR), []),
        (moved(seen__shapes=UNCLEAR, seen__crispness=DOWN), []),
        (moved(seen__shapes=UP, seen__drift=UP), []),
        (moved(seen__shapes=UP, seen__size=DOWN), []),
        (moved(seen__size=UP, seen__crispness=DOWN), []),
        (moved(seen__crispness__colors=DOWN, seen__shapes=UP), []),
        ({}, []),
    ],
)
def test_when_it_alarms(metrics, fell):
    """size trains with a negative weight: that it rises is no gain, and it is not held out."""
    told = alarm(metrics, {"shapes": 1.0, "size": -1.0}, ("crispness", "diversity", "size"))
    assert [one.score for one in (told.fell if told else [])] == fell


def test_an_alarm_tells_what_fell_and_what_rose():
    told = alarm(moved(seen__shapes=UP, unseen__crispness=DOWN), {"shapes": 1.0}, ["crispness"])
    assert str(told) == ("held out, crispness on unseen -0.2 (-0.3 to -0.1) while shapes on seen +0.2 (+0.1 to +0.3)")


@pytest.mark.parametrize(
    ("evaluations", "best"),
    [
        ([(0.1, 0), (0.5, 0), (0.9, 1), (0.4, 0)], 1),  # one without an alarm, where any such one rose
        ([(0.1, 0), (0.9, 1), (0.5, 0)], 2),  # also if it comes later
        ([(0.1, 0), (0.5, 1), (0.9, 2), (0.4, 1)], 2),  # all that rose alarm: the highest of them
        ([(0.3, 0), (0.2, 0), (0.1, 1)], 0),  # nothing rose: what the run began with
    ],
)
def test_the_best_evaluation_rose_and_has_no_alarm_if_any_has_none(evaluations, best):
    state = State()
    for iteration, (reward, alarms) in enumerate(evaluations):
        state.iteration = iteration
        note_evaluation(state, {"eval/seen/reward": reward, ALARMS: alarms})
        assert state.evaluated == iteration
    reward, alarms = evaluations[best]
    assert (state.best_iteration, state.best_score, state.best_alarmed) == (best, reward, alarms > 0)


def falling(images, prompts, metadata):
    """What the colour reward gains is lost here, and ever more of it."""
    return -colour(images, prompts, metadata)


@pytest.fixture
def config(tiny_folder, tmp_path):
    """Three iterations that train `colour`, each evaluated beside its opposite."""
    (tmp_path / "eval.txt").write_text("\n".join(PROMPTS))

    def made(name: str, **changes: Any):
        plain = small(
            tiny_folder, tmp_path / name, "cfg-free, dynamic ref", eval_every=1, num_samples=0, eval_rewards=("other",),
            eval_prompts={"seen": str(tmp_path / "eval.txt")}, eval_images_per_prompt=1,
        )  # fmt: skip
        return replace(plain, **changes)

    return made


FUNCTIONS = {"colour": colour, "other": falling}


def rising(gains):
    """A trained score that rises by gains[n] at evaluation n, whatever the pictures; rollouts earn what they do."""
    seen = []

    def reward(images, prompts, metadata):
        if len(prompts) != len(PROMPTS):
            return colour(images, prompts, metadata)
        seen.append(1)
        return torch.arange(len(prompts)) + 10.0 * gains[len(seen) - 1]

    return reward


@pytest.mark.slow
def test_a_run_tells_changes_alarms_and_keeps_the_best_without_one(config):
    """Iteration 1 gains without loss, iteration 2 more with one, iteration 3 loses."""
    functions = {"colour": rising([0, 1, 2, -1]), "other": rising([0, 0, -1, -1])}
    result = run(config("run", keep_checkpoints=1), reward_functions=functions)
    evaluated = [row for row in rows(result.run) if ALARMS in row]
    assert [row[ALARMS] for row in evaluated] == [0, 0, 1, 0]
    assert [row.get("eval/seen/colour/change") for row in evaluated] == [None, 10, 20, -10]
    assert evaluated[2]["eval/seen/other/change_high"] == -10
    assert all(f"eval/seen/drift/change_{end}" in row for row in evaluated[1:] for end in ("low", "high"))
    assert [checkpoint.iteration_of(path) for path in checkpoint.list_checkpoints(result.run)] == [1, 3]
    log, told = read_log(result.run / "metrics.jsonl"), {"rewards": {"colour": 1.0}, "eval_rewards": ["other"]}
    assert verdict(log, told).caveats[0] == (
        "Alarm at iteration 2: other on seen fell by 10.00 (95 %: 10.00 to 10.00), "
        "while colour on seen rose by 20.00 (95 %: 20.00 to 20.00)."
    )
    (other,) = [change for change in reported(log, told) if change.name.score == "other"]
    assert (other.interval, other.between, other.moved) == ((-10, -10), "−10.00 to −10.00", -1)


@pytest.mark.slow
def test_stopping_on_an_alarm_loses_nothing(config, capfd):
    """The run stops where Ctrl-C would have stopped it; resumed without the switch it ends as if it never had."""
    gains = {"colour": [0, 1, 2, 3], "other": [0, 0, -1, -2]}
    functions = {name: rising(values) for name, values in gains.items()}
    whole = run(config("whole", checkpoint_every=10), reward_functions=functions)
    stopping = config("parts", checkpoint_every=10, stop_on_alarm=True)
    functions = {name: rising(values) for name, values in gains.items()}
    result = run(stopping, reward_functions=functions)
    assert (result.iterations, result.interrupted) == (2, True)
    assert "alarm after iteration 2: held out, other on seen -10 (" in capfd.readouterr().out
    result = run(replace(stopping, stop_on_alarm=False), resume=True, reward_functions=functions)
    assert (result.iterations, result.interrupted) == (3, False)
    assert_same_run(whole.run, result.run, 3)
    states = [checkpoint.load(folder / "checkpoints" / "iteration-000003")[1] for folder in (whole.run, result.run)]
    assert [state["best_iteration"] for state in states] == [1, 1]


@pytest.mark.slow
def test_changes_survive_a_kill_and_the_first_scores_are_the_runs_own(config):
    """The same rows after a resume, against the scores of step 0, which are no longer computed."""
    run(config("whole"), reward_functions=FUNCTIONS)
    first = run(config("parts", iterations=1), reward_functions=FUNCTIONS)
    kept = load_file(first.run / "first_evaluation.safetensors")
    assert kept["seen/other"].mean().item() == pytest.approx(rows(first.run)[0]["eval/seen/other"])
    parts = run(config("parts"), resume=True, reward_functions=FUNCTIONS)
    assert_same_run(first.run.parent / "whole", parts.run, 3)
    assert all(torch.equal(kept[name], load_file(parts.run / "first_evaluation.safetensors")[name]) for name in kept)
    assert rows(parts.run)[-1]["eval/seen/colour/change"] == pytest.approx(
        rows(parts.run)[-1]["eval/seen/colour"] - rows(parts.run)[0]["eval/seen/colour"], abs=1e-4
    )


def test_a_prompt_that_a_set_names_often_counts_once():
    """Four rows of each of 20 prompts, moved alike: the interval is that of the 20, not half as wide."""
    prompt, moves = torch.arange(20).repeat(4), draws("moves", size=20).double()
    once, often = interval(moves), interval(moves.repeat(4), prompt)
    assert often == pytest.approx(once, abs=0.05)
    wrong = interval(moves.repeat(4))
    assert (wrong[1] - wrong[0]) / (often[1] - often[0]) == pytest.approx(0.5, abs=0.06)
    before = {"seen/x": torch.zeros(80)}
    found = changes(before, {"seen/x": moves.repeat(4)}, {"seen": prompt})
    assert (found["eval/seen/x/change_low"], found["eval/seen/x/change_high"]) == often


def test_false_movement_is_no_more_frequent_where_prompts_repeat():
    """Of 200 draws without any movement, 95 % intervals of 16 prompts, each three times, hold zero in 88 % at least."""
    prompt = torch.arange(16).repeat(3)
    held = [0, 0]
    for number in range(200):
        of_prompt = torch.randn(16, generator=seeds.generator(number, "unmoved"), dtype=torch.float64)
        own = torch.randn(48, generator=seeds.generator(number, "own"), dtype=torch.float64)
        moves = of_prompt.repeat(3) + 0.3 * own
        for place, given in enumerate((prompt, None)):
            low, high = interval(moves, given, seed=number)
            held[place] += low <= 0 <= high
    assert held[0] / 200 >= 0.88
    assert held[1] / 200 < 0.8, "what counting them as independent would do"


def test_rows_of_few_different_prompts_have_no_interval():
    rows = torch.arange(MIN_PROMPTS - 1).repeat(5)
    difference = {"seen/x": torch.randn(len(rows), generator=seeds.generator(0, "few"))}
    before = {"seen/x": torch.zeros(len(rows))}
    assert set(changes(before, difference, {"seen": rows})) == {"eval/seen/x/change"}
