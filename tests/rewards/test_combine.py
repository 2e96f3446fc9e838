"""Several rewards: weights, watched scores, one set of images for all."""

import pytest
import torch

from dgpo.core.seeds import generator
from dgpo.data.prompts import PromptSet
from dgpo.errors import UserError
from dgpo.rewards.base import RewardError, group_reward, requires, shares
from dgpo.rewards.combine import RewardSet

IMAGES, PROMPTS, METADATA = torch.rand(3, 3, 8, 8), ["a", "bb", "ccc"], [{}, {}, {}]
PROMPT_SET = PromptSet(PROMPTS, METADATA)
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


def test_all_rewards_see_the_same_detached_fp32_images():
    seen = []

    def watch(images, prompts, metadata):
        seen.append(images)
        return torch.zeros(3)

    images = IMAGES.to(torch.float64).requires_grad_()
    RewardSet({"one": 1.0, "two": 1.0}, {"one": watch, "two": watch})(images, PROMPTS, METADATA)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], IMAGES)
    assert seen[0].dtype == torch.float32
    assert not seen[0].requires_grad


def test_rewards_that_share_a_look_look_once_at_every_batch():
    looked = []

    def look(images):
        looked.append(len(images))
        return images.sum((1, 2, 3))

    one = shares(look)(lambda images, prompts, metadata, seen: seen)
    two = group_reward(shares(look)(lambda images, prompts, metadata, groups, seen: 2 * seen))
    other = shares(lambda images: len(images))(lambda images, prompts, metadata, seen: [seen] * len(images))
    rewards = RewardSet({"one": 1.0, "two": 1.0, "other": 1.0}, {"one": one, "two": two, "other": other})
    expected = IMAGES.sum((1, 2, 3))
    for threads in (False, True):
        with rewards.scoring(PROMPTS, METADATA, torch.tensor([0, 1, 1]), threads=threads) as scoring:
            scoring.add(IMAGES[:1])
            scoring.add(IMAGES[1:])
            scores = scoring.result().scores
        assert torch.equal(scores["one"], expected)
        assert torch.equal(scores["two"], 2 * expected)
        assert scores["other"].tolist() == [1, 2, 2]
        assert looked == [1, 2]
        looked.clear()
    assert torch.equal(one(IMAGES, PROMPTS, METADATA), expected), "called alone it looks for itself"


def test_a_look_at_a_part_of_a_batch_is_another_one():
    def look(images):
        if images[:, 0, 0, 0].max() > 1:
            raise ValueError("too bright")
        return images.sum((1, 2, 3))

    images = IMAGES.clone()
    images[1] = 2.0
    reward = shares(look)(lambda images, prompts, metadata, seen: seen)
    scores, _ = RewardSet({"it": 1.0}, {"it": reward}, failures={"it": "drop"})(images, PROMPTS, METADATA)
    assert scores["it"].isnan().tolist() == [False, True, False]
    assert torch.equal(scores["it"][[0, 2]], IMAGES.sum((1, 2, 3))[[0, 2]])


def spoil(images, prompts, metadata):
    """Changes all that it is given, through torch and through numpy."""
    images.numpy()[:, 0] = 0
    images.mul_(0.5)
    prompts[:] = ["spoilt"] * len(prompts)
    for row in metadata:
        row["words"].append("spoilt")
    return torch.arange(len(images)).float()


def test_what_a_reward_changes_in_place_nobody_else_sees():
    images, prompts = IMAGES.clone(), [*PROMPTS]
    metadata = [{"words": [prompt]} for prompt in PROMPTS]
    seen = []

    def watch(images, prompts, metadata):
        seen.append((images.clone(), [*prompts], [row["words"] for row in metadata]))
        return torch.zeros(3)

    rewards = RewardSet({"spoil": 1.0, "watch": 1.0}, {"spoil": spoil, "watch": watch})
    rewards(images, prompts, metadata)
    with rewards.scoring(prompts, metadata, torch.arange(3)) as scoring:  # in threads, as a rollout does
        scoring.add(images)
        scoring.result()
    for pixels, texts, words in seen:
        assert torch.equal(pixels, IMAGES)
        assert texts == PROMPTS
        assert words == [[prompt] for prompt in PROMPTS]
    assert torch.equal(images, IMAGES)
    assert (prompts, metadata) == (PROMPTS, [{"words": [prompt]} for prompt in PROMPTS])


def test_a_call_that_is_repeated_sees_the_images_as_they_were():
    calls = []

    def moody(images, prompts, metadata):
        calls.append(images.clone())
        images.zero_()
        if len(calls) == 1:
            raise ConnectionError("busy")
        return images.sum((1, 2, 3))

    RewardSet({"moody": 1.0}, {"moody": moody}, failures={"moody": "retry(2, 0)"})(IMAGES, PROMPTS, METADATA)
    assert torch.equal(calls[1], IMAGES)


@pytest.mark.parametrize("kind", [torch.zeros, lambda n: torch.zeros(n).numpy()])
def test_scores_in_a_buffer_that_the_reward_uses_again_stay(kind):
    buffer = kind(2)

    def reuse(images, prompts, metadata):
        for place, prompt in enumerate(prompts):
            buffer[place] = len(prompt)
        return buffer[: len(prompts)]

    prompts = ["a", "bb", "ccc", "dddd"]
    with RewardSet({"reuse": 1.0}, {"reuse": reuse}).scoring(prompts, [{}] * 4, torch.arange(4)) as scoring:
        for _ in range(2):
            scoring.add(torch.zeros(2, 3, 8, 8))
        assert scoring.result().scores["reuse"].tolist() == [1, 2, 3, 4]


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
        RewardSet({"length": 1.0}, {**OURS, "needy": needy}, watched=("needy",)).check(PROMPT_SET)
    assert RewardSet({"length": 1.0}, OURS).check(PROMPT_SET) == []


def test_prompts_need_what_the_rewards_for_them_read_and_one_reward_at_least():
    needy = requires("include")(lambda *_: [0.0])
    functions, tagged = {**OURS, "needy": needy}, PromptSet(["a", "b"], [{"tag": "x", "include": []}, {"tag": "y"}])
    tags = {"needy": ("x",)}
    RewardSet({"length": 1.0, "needy": 1.0}, functions, tags=tags).check(tagged)
    with pytest.raises(UserError, match="prompt 1 has no include"):
        RewardSet({"length": 1.0, "needy": 1.0}, functions).check(tagged)
    with pytest.raises(UserError, match=r"no reward is for prompt 1: its tag is 'y'.* every one of needy"):
        RewardSet({"needy": 1.0}, functions, watched=["length"], tags=tags).check(tagged)


OURS_WITHOUT_WEIGHTS = (
    *("shapes", "shapes_strict", "crispness", "diversity", "legibility", "words_diversity", "pixel_diversity"),
    *("jpeg_compressibility", "jpeg_incompressibility", "brightness", "redness", "ocr"),
)


@pytest.mark.parametrize("name", OURS_WITHOUT_WEIGHTS)
def test_built_in_rewards_change_nothing_that_they_are_given(name):
    """They share one tensor because of this."""
    if name == "ocr":
        pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    images, prompts = torch.rand(4, 3, 64, 64, generator=generator(0, "unchanged")), ["a"] * 2 + ["b"] * 2
    metadata = [{"include": [{"class": "circle", "count": 1}], "text": "CAT"} for _ in prompts]
    before, rows = images.clone(), [*map(dict, metadata)]
    RewardSet({name: 1.0})(images, prompts, metadata)
    assert torch.equal(images, before)
    assert (prompts, metadata) == (["a", "a", "b", "b"], rows)
