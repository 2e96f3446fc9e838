"""Two evaluations differ by the weights alone; every image counts once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from runs import REWARDS, colour, small

from dgpo import Sampling, load_model, load_prompts
from dgpo.core import seeds
from dgpo.core.flow import interpolate
from dgpo.models.text_cache import CondCache
from dgpo.rewards.base import RewardError
from dgpo.rewards.combine import RewardSet
from dgpo.training.evaluate import DRIFT_T, evaluate, spread

SETS = {
    "seen": load_prompts([("a cup", {"tag": "one"}), ("two dogs", {"tag": "two"}), ("green", {"tag": "one"})]),
    "unseen": load_prompts(["a red cat"]),
}


@pytest.fixture(scope="module")
def model(tiny_folder):
    model = load_model(tiny_folder, device="cpu", sets=("ref", "ema"))
    for tensor in model.weights.tensors("ema").values():
        tensor.add_(0.02)
    return model


@pytest.fixture
def score(model, tiny_folder, tmp_path):
    def evaluated(sets=SETS, reward=colour, batch_size=4, weights="ema", model=model, watched=(), **changes):
        config = small(tiny_folder, tmp_path, **{"eval_images_per_prompt": 3, "num_samples": 2, **changes})
        config = replace(config, sampling=replace(config.sampling, batch_size=batch_size))
        functions = {"colour": reward, **watched} if watched else {"colour": reward}
        rewards = RewardSet({"colour": 2.0}, functions, watched=watched)
        return evaluate(model, CondCache(model), sets, rewards, config, weights)

    return evaluated


@pytest.mark.slow
def test_noise_is_fixed(score):
    one, two = score(), score()
    assert one.metrics == two.metrics
    assert torch.equal(one.samples.images, two.samples.images)
    assert score(weights="policy").metrics != one.metrics
    assert score(seed=1).metrics != one.metrics


@pytest.mark.slow
def test_every_image_is_scored_once_in_any_batch(score):
    """Nine images in batches of four: the last batch is short, and not filled up."""
    calls = []

    def watch(images, prompts, metadata):
        calls.append((len(images), prompts))
        return colour(images, prompts, metadata)

    score(reward=watch)
    assert calls == [(9, ["a cup"] * 3 + ["two dogs"] * 3 + ["green"] * 3), (3, ["a red cat"] * 3)]
    whole, parts = score(batch_size=64).metrics, score(batch_size=2).metrics
    assert whole == pytest.approx(parts, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_a_set_may_have_its_own_number_of_images(score):
    sets, calls = {"eval_prompts": dict.fromkeys(SETS, "prompts.txt")}, []

    def watch(images, prompts, metadata):
        calls.append(len(images))
        return colour(images, prompts, metadata)

    few, all_three = score(reward=watch, eval_images={"unseen": 2}, **sets), score(**sets)
    assert calls == [9, 2]
    assert few.metrics["eval/seen/colour"] == all_three.metrics["eval/seen/colour"]
    alone = score(sets={"unseen": SETS["unseen"]}, eval_images_per_prompt=2)
    assert few.metrics["eval/unseen/colour"] == alone.metrics["eval/unseen/colour"], "the first two of the three"


def test_means_standard_errors_and_kinds(score):
    values = torch.arange(9.0) ** 2
    other = torch.tensor([5.0, 6.0, 7.0])
    metrics = score(reward=lambda images, prompts, metadata: values if len(images) == 9 else other).metrics
    means = values.view(3, 3).mean(1)
    assert metrics["eval/seen/colour"] == pytest.approx(values.mean().item())
    assert metrics["eval/seen/reward"] == pytest.approx(2 * values.mean().item())
    assert metrics["eval/seen/colour/stderr"] == pytest.approx((means.std() / 3**0.5).item())
    assert metrics["eval/seen/colour/one"] == pytest.approx((means[0] + means[2]).item() / 2)
    assert metrics["eval/seen/colour/two"] == pytest.approx(means[1].item())
    assert metrics["eval/unseen/colour"] == 6.0
    assert "eval/unseen/colour/stderr" not in metrics, "one prompt has no standard error"
    assert {key for key in metrics if key.startswith("eval/unseen")} == {
        f"eval/unseen/{name}" for name in ("colour", "reward", "drift")
    }


def test_watched_scores_are_reported_and_weigh_nothing(score):
    metrics = score(watched={"height": lambda images, prompts, metadata: [64.0] * len(images)}).metrics
    assert metrics["eval/seen/height"] == 64
    assert metrics["eval/seen/reward"] == pytest.approx(2 * metrics["eval/seen/colour"])


@pytest.mark.slow
def test_samples_are_the_first_image_of_the_first_prompts(score):
    images = []

    def keep(batch, prompts, metadata):
        images.append(batch)
        return colour(batch, prompts, metadata)

    found = score(reward=keep).samples
    assert found.prompts == ["a cup", "two dogs"]
    assert torch.equal(found.images, images[0][[0, 3]])
    assert score(num_samples=0).samples.prompts == []
    assert score(num_samples=99).samples.prompts == ["a cup", "two dogs", "green"]


def test_several_images_of_a_prompt_are_kept_with_their_scores(score):
    """Six of nine images: the first two of each of three prompts. What is kept changes no score."""
    values, few = torch.arange(9.0), score(reward=lambda images, *_: torch.arange(float(len(images))), num_samples=1)
    found = score(reward=lambda images, *_: values[: len(images)], num_samples=6)
    assert found.metrics == few.metrics
    samples = found.samples
    assert samples.prompts == ["a cup", "two dogs", "green"]
    assert len(samples.images) == 6
    assert samples.scores["colour"].tolist() == [0, 1, 3, 4, 6, 7]
    assert samples.scores["reward"].tolist() == [0, 2, 6, 8, 12, 14]
    assert set(samples.scores) == {"colour", "reward", "drift"}


@pytest.mark.parametrize(
    ("num_samples", "images_per_prompt", "prompts", "expected"),
    [
        (24, 6, 48, (4, 6)),
        (12, 6, 48, (4, 3)),
        (16, 2, 48, (8, 2)),
        (12, 1, 48, (12, 1)),
        (3, 6, 48, (3, 1)),
        (12, 6, 2, (2, 6)),
        (99, 6, 3, (3, 6)),
        (0, 6, 48, (0, 1)),
    ],
)
def test_pictures_are_spread_over_four_prompts(num_samples, images_per_prompt, prompts, expected):
    assert spread(num_samples, images_per_prompt, prompts) == expected


def test_drift_is_the_references_own_loss_on_the_images(score, tiny_folder, model):
    """Recomputed by hand, for images of the reference itself and of other weights."""
    prompts = SETS["unseen"]
    model = load_model(tiny_folder, device="cpu", sets=("ref", "ema"))

    def by_hand():
        kept = {}
        decode = model.decode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "decode", lambda x0: kept.setdefault("x0", x0) is None or decode(x0))
            found = score(sets={"unseen": prompts}, model=model, eval_images_per_prompt=1).metrics
        stream = seeds.generator(0, "eval", 0, 0)
        model.init_noise([stream])  # the stream's first draw was the image's initial noise
        noise = torch.randn(model.latent_shape, generator=stream)[None]
        losses = []
        for level in DRIFT_T:
            t = torch.tensor([level])
            with torch.no_grad():
                v = model.velocity(interpolate(kept["x0"], noise, t), t, model.encode(prompts.prompts), weights="ref")
            losses.append((v - (noise - kept["x0"])).square().mean().item())
        return found["eval/unseen/drift"], sum(losses) / 3

    drift, expected = by_hand()
    assert drift == pytest.approx(expected, rel=1e-5)
    for tensor in model.weights.tensors("ema").values():
        tensor.add_(0.1)
    far, expected = by_hand()
    assert far == pytest.approx(expected, rel=1e-5)
    assert far != pytest.approx(drift, rel=1e-3)


@pytest.mark.slow
def test_without_reference_weights_there_is_no_drift(score, tiny_folder):
    model = load_model(tiny_folder, device="cpu", sets=("ema",))
    assert not any("drift" in key for key in score(model=model).metrics)


def test_rewards_are_called_without_gradient_and_on_the_cpu(score):
    def check(images, prompts, metadata):
        assert images.device.type == "cpu"
        assert not images.requires_grad
        return REWARDS["colour"](images, prompts, metadata)

    score(reward=check)


@pytest.mark.slow
def test_evaluations_may_have_steps_and_guidance_of_their_own(score):
    rollouts = Sampling(num_inference_steps=3, guidance_scale=1.0)
    own = replace(rollouts, eval_num_inference_steps=5, eval_guidance_scale=2.0)
    as_rollouts = Sampling(num_inference_steps=5, guidance_scale=2.0)
    assert score(sampling=own).metrics == score(sampling=as_rollouts).metrics
    assert score(sampling=own).metrics != score(sampling=rollouts).metrics


def test_images_without_a_score_are_left_out_and_counted(model, tiny_folder, tmp_path):
    """Of three images each, the first of `one`'s is dropped; `height` is for the tag `two` only."""
    config = small(tiny_folder, tmp_path, eval_images_per_prompt=3, num_samples=0)
    lost = torch.zeros(9, dtype=torch.bool)
    lost[0] = True
    functions = {
        "colour": lambda images, *_: torch.arange(len(images)).float().masked_fill(lost[: len(images)], torch.nan),
        "height": lambda images, *_: [64.0] * len(images),
    }
    rewards = RewardSet(
        {"colour": 2.0}, functions, watched=["height"], tags={"height": ("two",)}, failures={"colour": "drop"}
    )
    metrics = evaluate(model, CondCache(model), {"seen": SETS["seen"]}, rewards, config).metrics
    assert metrics["eval/seen/colour/missing"] == metrics["eval/seen/reward/missing"] == 1
    assert metrics["eval/seen/colour"] == pytest.approx((1.5 + 4 + 7) / 3), "a mean of the prompts' means"
    assert metrics["eval/seen/reward"] == pytest.approx(2 * metrics["eval/seen/colour"])
    assert metrics["eval/seen/height"] == metrics["eval/seen/height/two"] == 64
    assert not {"eval/seen/height/one", "eval/seen/height/stderr", "eval/seen/height/missing"} & metrics.keys()
    lost[:] = True
    with pytest.raises(RewardError, match="no image of eval/seen/reward got a reward"):
        evaluate(model, CondCache(model), {"seen": SETS["seen"]}, rewards, config)


def test_calls_that_were_repeated_are_counted(model, tiny_folder, tmp_path):
    calls = []

    def moody(images, *_):
        calls.append(len(images))
        if len(calls) == 1:
            raise ConnectionError("busy")
        return [1.0] * len(images)

    rewards = RewardSet({"moody": 1.0}, {"moody": moody}, failures={"moody": "retry(2, 0.01)"})
    config = small(tiny_folder, tmp_path, num_samples=0)
    metrics = evaluate(model, CondCache(model), {"seen": SETS["seen"]}, rewards, config).metrics
    assert metrics["eval/seen/moody/retries"] == 1
    assert metrics["eval/seen/moody"] == 1
    assert "eval/seen/reward/retries" not in metrics


def test_the_error_is_over_different_prompts(model, tiny_folder, tmp_path):
    """Each prompt three times: the mean is that over rows, and the error that of clusters."""
    config = small(tiny_folder, tmp_path, eval_images_per_prompt=1, num_samples=0)
    prompts = load_prompts(["a", "b", "c"] * 3)
    values = torch.tensor([0.0, 3.0, 6.0, 0.0, 3.0, 6.0, 1.0, 4.0, 7.0])
    rewards = RewardSet({"colour": 1.0}, {"colour": lambda images, *_: values})
    found = evaluate(model, CondCache(model), {"seen": prompts}, rewards, config)
    assert found.metrics["eval/seen/colour"] == pytest.approx(10 / 3)
    assert found.metrics["eval/seen/colour/stderr"] == pytest.approx(3 / 3**0.5), (
        "three prompts of means 1/3, 10/3, 19/3"
    )
    assert found.distinct["seen"].tolist() == [0, 1, 2] * 3
