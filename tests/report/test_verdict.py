from typing import Any

import pytest

from dgpo.report.log import Log, from_rows
from dgpo.report.verdict import noise_scale_sentence, verdict

CONFIG = {"rewards": {"shapes": 1.0}, "iterations": 20}


def run(**series: list[Any]) -> Log:
    """A log whose metrics take these values at iterations 0, 10 and 20; `__` stands for a slash."""
    metrics = {key.replace("__", "/"): values for key, values in series.items()}
    return from_rows({"iteration": 10 * i} | {key: values[i] for key, values in metrics.items()} for i in range(3))


def test_an_improvement_names_both_sets_and_the_effort():
    log = run(
        eval__seen__shapes_strict=[0.46, 0.7, 0.81],
        eval__unseen__shapes_strict=[0.4, 0.5, 0.62],
        eval__seen__shapes=[0.6, 0.5, 0.4],
        time__elapsed=[0, 400, 840],
    )
    said = verdict(log, CONFIG)
    assert (said.tone, said.word) == ("good", "Improved")
    assert said.sentence == "shapes_strict 0.46 → 0.81 on seen, 0.40 → 0.62 on unseen; 0 iterations in 14 min."
    assert said.caveats == []


def test_a_hacked_reward_is_called_worse():
    log = run(eval__seen__shapes_strict=[0.34, 0.5, 0.04], train__reward_mean=[0.3, 0.5, 0.6])
    said = verdict(log, CONFIG)
    assert (said.tone, said.word) == ("bad", "Got worse")
    assert said.caveats == [
        "It had been better at iteration 10: shapes_strict on seen 0.50 → 0.04.",
        "The training reward rose meanwhile, 0.30 → 0.60: it is probably being gamed.",
        "Still going, or stopped early: 3 of 20 iterations.",
    ]


def test_a_change_within_two_standard_errors_is_no_change():
    noisy = {"eval__seen__shapes_strict": [0.50, 0.51, 0.54], "eval__seen__shapes_strict__stderr": [0.03, 0.03, 0.03]}
    assert verdict(run(**noisy), CONFIG).word == "No clear change"
    assert "(no clear change)" in verdict(run(**noisy), CONFIG).sentence
    sure = noisy | {"eval__seen__shapes_strict__stderr": [0.01, 0.01, 0.01]}
    assert verdict(run(**sure), CONFIG).word == "Improved"


def test_where_an_interval_is_logged_it_decides():
    """The paired interval is narrower than the errors of two evaluations, and wins."""
    noisy = {"eval__seen__shapes": [0.50, 0.51, 0.54], "eval__seen__shapes__stderr": [0.03, 0.03, 0.03]}
    low, high = [None, -0.01, 0.02], [None, 0.03, 0.06]
    sure = noisy | {"eval__seen__shapes__change_low": low, "eval__seen__shapes__change_high": high}
    assert verdict(run(**noisy), CONFIG).word == "No clear change"
    assert verdict(run(**sure), CONFIG).word == "Improved"


def test_an_alarm_at_the_end_is_told_and_takes_the_green():
    values = {"eval__seen__shapes": [0.3, 0.5, 0.5], "eval__seen__crispness": [0.9, 0.5, 0.5]}
    for score, sign in (("shapes", 1), ("crispness", -1)):
        for end in ("", "_low", "_high"):
            values[f"eval__seen__{score}__change{end}"] = [None, sign * 0.2, sign * 0.2]
    config = {**CONFIG, "eval_rewards": ["crispness"]}
    said = verdict(run(**values, eval__alarms=[0, 1, 1]), config)
    assert (said.tone, said.word) == ("mixed", "Improved")
    assert said.caveats[0] == (
        "Alarm at iteration 20: crispness on seen fell by 0.20 (95 %: 0.20 to 0.20), while shapes on seen rose by "
        "0.20 (95 %: 0.20 to 0.20). Earlier alarms: iteration 10."
    )
    assert said.caveats[1].startswith("An alarm means that")
    assert "use an earlier checkpoint" in said.caveats[1]
    assert "crispness among the rewards" in said.caveats[1]
    assert verdict(run(**values, eval__alarms=[0, 1, 0]), config).tone == "good"


def test_sets_that_disagree_are_mixed():
    log = run(eval__seen__shapes_strict=[0.4, 0.5, 0.6], eval__unseen__shapes_strict=[0.4, 0.3, 0.3])
    assert verdict(log, CONFIG).tone == "mixed"


@pytest.mark.parametrize(
    ("score", "after", "told"), [("diversity", 0.4, True), ("diversity", 0.6, False), ("drift", 0.6, False)]
)
def test_watched_losses_are_told_and_drift_is_none(score: str, after: float, told: bool):
    log = run(**{"eval__seen__shapes": [0.3, 0.4, 0.5], f"eval__seen__{score}": [0.5, 0.5, after]})
    assert any(score in caveat for caveat in verdict(log, CONFIG).caveats) == told


def test_without_a_second_evaluation_nothing_is_claimed():
    train = [{"iteration": i, "train/reward_mean": reward} for i, reward in ((1, 0.3), (2, 0.4))]
    log = from_rows([{"iteration": 0, "eval/seen/shapes": 0.5}, *train])
    said = verdict(log, CONFIG)
    assert (said.tone, said.word) == ("none", "Not compared yet")
    assert "0.50 at iteration 0, the only evaluation; training reward 0.30 → 0.40; 2 iterations" in said.sentence
    assert verdict(from_rows([]), CONFIG).word == "Nothing logged yet"


@pytest.mark.parametrize(
    ("scale", "advice"),
    [
        (80.0, "nearly linearly"),
        (10.0, "less than in proportion"),
        (1.0, "wasted"),
        (-5.0, "drowned"),
        (None, "drowned"),
    ],
)
def test_noise_scale_advice(scale: float | None, advice: str):
    assert advice in (noise_scale_sentence(run(train__grad_noise_scale=[1.0, scale, scale]), 10) or "")


def test_noise_scale_arithmetic():
    """B = 30 groups, G = 10: a step makes 10 / 40 of the progress; 20 groups make (20 / 50) / (10 / 40) = 1.6 of it."""
    said = noise_scale_sentence(run(train__grad_noise_scale=[999.0, 30.0, 30.0]), 10) or ""
    assert "about 30 groups" in said
    assert "25%" in said
    assert "1.60 times" in said
    assert noise_scale_sentence(run(train__loss=[1.0, 1.0, 1.0]), 10) is None
    assert noise_scale_sentence(run(train__grad_noise_scale=[1.0, 1.0, 1.0]), None) is None


def test_the_median_of_an_even_number_of_estimates_lies_between_the_middle_two():
    """The second half is 10 and 50: 30 in the middle, 20 to 40 its middle half."""
    said = noise_scale_sentence(run(train__grad_noise_scale=[1.0, 10.0, 50.0]), 10) or ""
    assert "about 30 groups (middle half of the estimates: 20 to 40)" in said
    assert "drowned" in (noise_scale_sentence(run(train__grad_noise_scale=[1.0, 10.0, -1.0]), 10) or "")
