"""Which names of metrics are scores, where names of rewards and of tags may be anything."""

from dgpo.run.metric_names import EvalName, eval_names


def test_scores_and_their_parts_are_told_apart_from_what_is_said_of_them():
    said = ("stderr", "missing", "retries", "change", "change_low", "change_high")
    keys = ["eval/seen/ocr", "eval/seen/ocr/long words", *(f"eval/seen/ocr/{name}" for name in said), "eval/alarms"]
    assert eval_names(["train/reward_mean", *keys]) == [EvalName("seen", "ocr"), EvalName("seen", "ocr", "long words")]
    assert [name.key for name in eval_names(keys)] == keys[:2]


def test_a_reward_that_is_named_by_its_address_is_one_score():
    server = "http://host:8000/v1"
    keys = [f"eval/seen/{server}", f"eval/seen/{server}/two_object", f"eval/seen/{server}/stderr", "eval/unseen/reward"]
    assert eval_names(keys) == [
        EvalName("seen", server),
        EvalName("seen", server, "two_object"),
        EvalName("unseen", "reward"),
    ]
    assert eval_names(keys)[0].key == keys[0]


def test_parts_of_parts_are_left_out():
    keys = ["eval/seen/geneval", "eval/seen/geneval/strict", "eval/seen/geneval/strict/counting"]
    assert eval_names(keys) == [EvalName("seen", "geneval"), EvalName("seen", "geneval", "strict")]
