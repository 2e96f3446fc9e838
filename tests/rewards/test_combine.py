"""Several rewards: weights, watched scores, one set of images for all."""

import pytest
import torch

from dgpo.errors import UserError
from dgpo.rewards.base import RewardError, requires
from dgpo.rewards.combine import RewardSet

IMAGES, PROMPTS, METADATA = torch.rand(3, 3, 8, 8), ["a", "bb", "ccc"], [{}, {}, {}]
OURS = {
    "length": lambda images, prompts, metadata: [len(p) for p in prompts],
    "both": lambda images, prompts, metadata: {"sum": torch.ones(3), "half": torch.full((3,), 0.5)},
}


def test_rewards_are_the_weighted_sum_and_scores_stay_raw():
    scores, rewards = RewardSet({"length": 2.0, "both": -1.0}, OURS)(IMAGES, PROMPTS, METADATA)
    assert {name: score.tolist() for name, score in scores.items()} == {
        "length": [1, 2, 3], "both": [1, 1, 1], "both/half": [0.5, 0.5, 0.5],
    }  # fmt: skip
    assert rewards.tolist() == [1, 3, 5]


def test_watched_scores_weigh_nothing():
    scores, rewards = RewardSet({"length": 1.0}, OURS, watched=["both", "length"])(IMAGES, PROMPTS, METADATA)
    assert set(scores) == {"length", "both", "both/half"}
    assert rewards.tolist() == [1, 2, 3]


def test_all_rewards_see_the_same_detached_fp32_tensor():
    seen = []

    def watch(images, prompts, metadata):
        seen.append(images)
        return torch.zeros(3)

    images = IMAGES.to(torch.float64).requires_grad_()
    RewardSet({"one": 1.0, "two": 1.0}, {"one": watch, "two": watch})(images, PROMPTS, METADATA)
    assert seen[0] is seen[1]
    assert seen[0].dtype == torch.float32
    assert not seen[0].requires_grad


def test_failures_are_kept_in_the_given_folder(tmp_path):
    rewards = RewardSet({"bad": 1.0}, {"bad": lambda *_: [0, float("nan"), 0]}, save_failures_to=tmp_path)
    with pytest.raises(RewardError, match="prompt 'bb'"):
        rewards(IMAGES, PROMPTS, METADATA)
    assert len(list(tmp_path.glob("bad-00001.*"))) == 2


def test_bad_settings_are_told():
    with pytest.raises(UserError, match="Did you mean 'shapes_strict'"):
        RewardSet({"shapes_strit": 1.0})
    with pytest.raises(UserError, match="weight of the reward 'length' is nan"):
        RewardSet({"length": float("nan")}, OURS)
    needy = requires("include")(lambda *_: [0.0])
    with pytest.raises(UserError, match="include"):
        RewardSet({"length": 1.0}, {**OURS, "needy": needy}, watched=("needy",)).check_metadata(METADATA)
    RewardSet({"length": 1.0}, OURS).check_metadata(METADATA)


def test_prompts_need_what_the_rewards_for_them_read_and_one_reward_at_least():
    needy = requires("include")(lambda *_: [0.0])
    functions, tagged = {**OURS, "needy": needy}, [{"tag": "x", "include": []}, {"tag": "y"}]
    tags = {"needy": ("x",)}
    RewardSet({"length": 1.0, "needy": 1.0}, functions, tags=tags).check_metadata(tagged)
    with pytest.raises(UserError, match="prompt 1 has no include"):
        RewardSet({"length": 1.0, "needy": 1.0}, functions).check_metadata(tagged)
    with pytest.raises(UserError, match=r"no reward is for prompt 1: its tag is 'y'.* every one of needy"):
        RewardSet({"needy": 1.0}, functions, watched=["length"], tags=tags).check_metadata(tagged)
