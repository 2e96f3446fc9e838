from pathlib import Path

from dgpo.report.log import Point, find, from_rows, is_in_domain, read_log, reward_names, shown_evals
from dgpo.run.metric_names import EvalName


def test_rows_of_one_iteration_merge_and_the_later_value_stands(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"iteration": 2, "train/loss": 9.0}\n{"iteration": 1, "train/loss": 1.0, "note": "x"}\n'
        '{"iteration": 2, "train/loss": 2.0}\n{"iteration": 2, "eval/seen/shapes": 0.5}\n{"iteration": 3, "tra'
    )
    log = read_log(path)
    assert log.series("train/loss") == [Point(1, 1.0), Point(2, 2.0)]
    assert log.series("eval/seen/shapes") == [Point(2, 0.5)]
    assert log.series("note") == []
    assert log.trained() == 2
    assert read_log(tmp_path / "nowhere.jsonl").columns == {}


def test_values_that_are_not_finite_stay_out_of_series():
    log = from_rows([{"iteration": 1, "a": None, "b": 2}, {"iteration": 2, "a": 3.0}])
    assert log.series("a") == [Point(2, 3.0)]
    assert len(log.columns["a"]) == 2
    assert log.names("") == ["a", "b"]
    assert log.elapsed() is None


def test_evaluation_names_are_read_generically():
    keys = ["eval/easy/ocr", "eval/easy/ocr/stderr", "eval/easy/ocr/change", "eval/easy/ocr/change_low", "eval/alarms"]
    keys += ["eval/easy/ocr/long words", "evaluated"]
    log = from_rows([{"iteration": 0, **dict.fromkeys(keys, 1)}])
    assert log.evals() == [EvalName("easy", "ocr"), EvalName("easy", "ocr", "long words")]
    assert EvalName("easy", "ocr").key == "eval/easy/ocr"


def test_in_domain_is_what_the_config_rewards_whatever_its_form():
    assert reward_names(["ocr", {"name": "pickscore", "weight": 2}]) == {"ocr", "pickscore"}
    assert reward_names({"shapes": 1.0, "my.module:sharpness": 0.5}) >= {"shapes", "sharpness"}
    config = {"data": {"rewards": {"shapes": 1.0}}, "eval_rewards": ["crispness"]}
    assert find(config, "rewards") == {"shapes": 1.0}
    judged = [is_in_domain(score, config) for score in ("shapes", "shapes_strict", "reward", "crispness", "drift")]
    assert judged == [True, True, True, False, False]


def test_the_evaluation_before_training_is_no_iteration():
    rows = [{"iteration": 0, "eval/seen/reward": 0.1, "train/forwards": 0}, {"iteration": 1, "train/loss": 0.2}]
    assert from_rows(rows).trained() == 1


def test_a_score_that_repeats_another_is_not_shown():
    row = {"eval/a/yellow": 0.5, "eval/a/reward": 0.5, "eval/a/yellow/colors": 0.5, "eval/a/reward/colors": 0.5}
    log = from_rows([{"iteration": 0, **row, "eval/a/drift": 0.5, "eval/a/drift/colors": 0.5}])
    assert shown_evals(log, {"rewards": {"yellow": 1.0}}) == [EvalName("a", "yellow"), EvalName("a", "drift")]
    other = [name for name in shown_evals(log, {"rewards": {"yellow": 2.0}}) if name.score == "reward"]
    assert other == [EvalName("a", "reward")], "weighted, the sum says something else"
    two = from_rows([{"iteration": 0, "eval/a/x": 0.5, "eval/a/x/one": 0.5, "eval/a/x/two": 0.5, "eval/b/x/one": 0.1}])
    assert shown_evals(two, {}) == two.evals(), "of two tags each says something"
    apart = from_rows([{"iteration": 0, "eval/a/x": 0.5, "eval/a/x/part": 0.2}])
    assert shown_evals(apart, {}) == apart.evals(), "an entry of a reward's dict, or a tag of some prompts"
