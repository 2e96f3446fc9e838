"""A picture is marked as right or wrong only by a score that says so."""

import math

import pytest

from dgpo.report.marks import Mark, Marking, marking

NAN, SHAPES = math.nan, ["shapes", "shapes_strict"]


@pytest.mark.parametrize(
    ("scores", "rewards", "expected"),
    [
        ({"shapes": [0.5, 1.0], "shapes_strict": [0.0, 1.0], "reward": [0.2, 1.0]}, SHAPES, "shapes_strict"),
        ({"shapes": [0.0, 1.0], "shapes_strict": [0.0, 1.0]}, SHAPES, "shapes_strict"),
        ({"ocr": [0.5, 1.0], "ocr/exact": [0.0, 1.0], "reward": [0.5, 1.0]}, ["ocr"], "ocr/exact"),
        ({"ok": [0.0, NAN], "reward": [0.0, NAN]}, ["ok"], "ok"),
    ],
)  # fmt: skip
def test_a_trained_score_of_zeros_and_ones_is_right_or_wrong(scores, rewards, expected):
    assert marking([scores, scores], {"rewards": dict.fromkeys(rewards, 1.0)}) == Marking(expected, right_or_wrong=True)


def test_otherwise_the_reward_is_shown_as_it_is():
    scores = {"warm": [0.25, -3.0], "sharp": [0.0, 1.0], "reward": [0.25, NAN], "drift": [0.1, 0.1]}
    found = marking([scores], {"rewards": {"warm": 1.0}, "eval_rewards": ["sharp"]})
    assert found == Marking("reward", right_or_wrong=False), "a watched score marks nothing"
    assert [found.mark(value) for value in scores["reward"]] == [Mark("0.25", "none"), Mark("–", "none")]
    assert found.change([0.2, 0.4], [0.5, NAN]) == "0.30 → 0.50"


def test_one_number_between_makes_it_no_mark():
    before, after = {"ok": [0.0, 1.0], "reward": [0.0, 1.0]}, {"ok": [0.5, 1.0], "reward": [0.5, 1.0]}
    assert marking([before, after], {"rewards": {"ok": 1.0}}) == Marking("reward", right_or_wrong=False)


def test_without_scores_there_is_no_mark():
    """An iteration of an earlier version has none."""
    assert marking([{}, {"reward": [1.0]}], {"rewards": {"ok": 1.0}}) is None
    assert marking([], {}) is None


def test_right_ones_are_counted():
    strict = Marking("shapes_strict", right_or_wrong=True)
    assert [strict.mark(value) for value in (1.0, 0.0)] == [Mark("✓", "good"), Mark("✗", "bad")]
    assert strict.change([0.0, 1.0, NAN], [1.0, 1.0, 1.0]) == "1 of 2 → 3 of 3"
