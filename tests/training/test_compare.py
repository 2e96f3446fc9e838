"""Advantages of a rollout of which some images, or groups, have no reward."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from dgpo import DGPO, Config, Sampling
from dgpo.algorithms import AWM, DiffusionDPO
from dgpo.rewards.base import RewardError
from dgpo.training.compare import compared, constant_scores, with_advantages
from dgpo.training.metrics import describe
from dgpo.training.sources import let_go
from dgpo.training.update import has_gradients_of_groups
from dgpo.types import Rollout

NAN = float("nan")
CONFIG = Config(
    num_groups=3, group_size=4, algorithm=AWM(), sampling=Sampling(), rewards={"one": 1.0, "two": 2.0}, eval_every=0
)
AWM_CONFIG = replace(CONFIG, algorithm=AWM())
INDEX = torch.arange(12) // 4


def rollout(rewards, **scores):
    rewards = torch.tensor(rewards, dtype=torch.float32)
    return Rollout(
        iteration=4,
        num_groups=3,
        group_sizes=torch.full((3,), 4),
        prompts=["x"] * 12,
        metadata=[{}] * 12,
        group_index=INDEX,
        image_index=torch.arange(12),
        cond=None,
        sigmas=torch.zeros(1),
        guidance_scale=1.0,
        x0=torch.zeros(12, 1),
        images=torch.zeros(12, 0),
        scores={name: torch.tensor(score, dtype=torch.float32) for name, score in scores.items()},
        rewards=rewards,
        advantages=torch.zeros(12),
        trained=torch.ones(12, dtype=torch.bool),
        failures=Counter({"dropped/one": 4, "retries/one": 2}),
    )


DROPPED = [NAN, 1, 2, 6, 0, 0, 0, 1, NAN, NAN, NAN, 5]


@pytest.mark.parametrize("algorithm", [DGPO(), AWM(), DiffusionDPO()])
def test_a_dropped_image_leaves_its_group_and_the_rest_sum_to_zero(algorithm):
    config = replace(CONFIG, algorithm=algorithm)
    found = with_advantages(rollout(DROPPED), config)
    assert found.advantages.view(3, 4).sum(1).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.advantages[torch.tensor(DROPPED).isnan()].eq(0).all()
    assert not found.trained[torch.tensor(DROPPED).isnan()].any()
    assert found.advantages[3] > 0 > found.advantages[1]
    assert found.group_sizes.tolist() == [found.trained[group == INDEX].sum() for group in range(3)]
    assert not found.trained[8:].any(), "one image alone is compared with nothing"
    without = algorithm.advantages(torch.tensor([1.0, 2, 6, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 1, 1, 1]), 2)
    assert torch.equal(found.advantages[1:8], without), "those of the smaller groups"


def test_with_the_extremes_of_each_group_or_without_equal_groups():
    few = with_advantages(rollout(DROPPED), replace(AWM_CONFIG, train_images=2))
    assert few.group_sizes.tolist() == [2, 2, 0]
    equal = [NAN, 1, 1, 1, *DROPPED[4:]]
    found = with_advantages(rollout(equal), replace(AWM_CONFIG, drop_equal_groups=True))
    assert found.group_sizes.tolist() == [0, 4, 0]
    assert has_gradients_of_groups(found, AWM_CONFIG)
    dropped = with_advantages(rollout(DROPPED), AWM_CONFIG)
    assert not has_gradients_of_groups(dropped, AWM_CONFIG), "the noise scale is not measured then"


def test_without_any_two_images_of_a_prompt_the_run_stops():
    with pytest.raises(RewardError, match="no two images of a prompt got a reward in iteration 5"):
        with_advantages(rollout([1, NAN, NAN, NAN] * 3), AWM_CONFIG)


def test_means_are_over_the_images_that_were_scored():
    config = replace(AWM_CONFIG, reward_failures={"one": "retry(1, 0)+drop"})
    of_tag = [NAN] * 8 + [1, 2, 3, 4]
    given = rollout([NAN, 1, 2, 3] + [1] * 8, one=[NAN, 1, 2, 3] + [0] * 8, two=of_tag, three=[NAN] * 12)
    metrics = describe(with_advantages(given, config), config)
    assert metrics["train/reward_mean"] == pytest.approx(14 / 11)
    assert metrics["train/score/one"] == pytest.approx(6 / 11)
    assert metrics["train/score/two"] == 2.5
    assert "train/score/three" not in metrics
    assert metrics["train/frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert metrics["train/frac_trained"] == pytest.approx(11 / 12)
    assert (metrics["train/reward_retries/one"], metrics["train/reward_dropped/one"]) == (2, 4)


def test_a_replaced_group_of_lone_images_is_none_of_equal_ones():
    """The first group is equal, of the second one image was scored: both go, and only the first counts as equal."""
    given = rollout([0] * 4 + [1, NAN, NAN, NAN] + [1, 2, 3, 4], one=[0] * 4 + [1, NAN, NAN, NAN] + [1, 2, 3, 4])
    left = let_go(
        given._replace(cond=torch.zeros(12, 1)), torch.tensor([True, True, False]), compared(given, AWM_CONFIG)
    )
    assert (left.group_index.tolist(), left.replaced[0].equal) == ([2] * 4, 1)
    metrics = describe(with_advantages(left, AWM_CONFIG), AWM_CONFIG)
    assert metrics["train/frac_reward_zero_std"] == 1 / 2
    assert metrics["train/reward_mean"] == metrics["train/score/one"] == pytest.approx(11 / 9)


def test_normalised_rewards_weigh_what_their_weights_say():
    """By hand: in the first group `one` has deviation 1 and `two` 100; in the second `two` is equal; in the third
    it does not apply."""
    one = [1, 1, 3, 3, 0, 2, 0, 2, 5, 5, 7, 7]
    two = [200, 0, 0, 200, 7, 7, 7, 7, NAN, NAN, NAN, NAN]
    config = replace(CONFIG, reward_normalization="group")
    given = rollout([0] * 12, one=one, two=two)
    expected = [1, -3, -1, 3, -1, 1, -1, 1, -1, -1, 1, 1]  # weights 1 and 2
    assert compared(given, config).rewards.tolist() == pytest.approx(expected, abs=1e-3)
    batch = with_advantages(
        given, replace(config, algorithm=AWM(std="batch"))
    ).advantages  # GDPO's last step: over the batch's deviation
    deviation = (sum(value**2 for value in expected) / 12) ** 0.5
    assert batch.tolist() == pytest.approx([value / deviation for value in expected], abs=1e-3)
    scaled = rollout([0] * 12, one=one, two=[1000 * value for value in two])
    assert compared(scaled, config).rewards.tolist() == pytest.approx(expected, abs=1e-3), "scales are no weights"
    dropped = compared(rollout([NAN] + [0] * 11, one=[NAN, *one[1:]], two=[NAN, *two[1:]]), config)
    assert len(dropped.rewards) == 11
    assert dropped.rewards[:3].sum().abs() < 1e-3, "normalised over the images that stay"


def test_a_reward_that_tells_no_images_apart_is_found():
    """Over the images that it scored: `one` has none of the first group, and `two` only differs in the last."""
    given = rollout([0] * 12, one=[NAN] * 4 + [0.5] * 8, two=[1] * 11 + [2])
    assert constant_scores(given, CONFIG) == {"one": 0.5}
    assert constant_scores(rollout([0] * 12, one=[NAN] * 11 + [0.5], two=[NAN] * 12), CONFIG) == {}
