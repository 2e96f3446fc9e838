"""The check finds what is wrong with a reward, and nothing wrong with a right one."""

from __future__ import annotations

import pytest
import torch

from dgpo.core import seeds
from dgpo.errors import UserError
from dgpo.rewards.base import Batch, requires
from dgpo.rewards.builtin.diversity import PixelDiversity
from dgpo.rewards.builtin.simple import brightness, jpeg_compressibility, redness
from dgpo.rewards.check import check_reward

IMAGES = (
    torch.rand(6, 3, 24, 24, generator=seeds.generator(0, "images")) * torch.linspace(0.5, 1, 6)[:, None, None, None]
)
PICTURES = ("black", "white", "one colour", "noise", "16 pixels", "1024 pixels")


def batch(size=1):
    """Six images in groups of `size`."""
    prompts = [f"prompt {i // size}" for i in range(6)]
    return Batch(IMAGES, prompts, [{"n": i} for i in range(6)], torch.arange(6) // size)


def checked(reward, size=1, tolerance=0.01):
    return {found.check: found for found in check_reward("mine", reward, batch(size), tolerance)}


def failed(*arguments):
    return [check for check, found in checked(*arguments).items() if found.passed is False]


def with_parts(images, prompts, metadata):
    return {"total": brightness(images, prompts, metadata).tolist(), "part": redness(images, prompts, metadata).numpy()}


@pytest.mark.parametrize("reward", [brightness, jpeg_compressibility, with_parts])
def test_right_rewards_pass(reward):
    assert failed(reward) == []


def test_a_group_reward_is_right_by_its_groups():
    assert failed(PixelDiversity(), 3) == []
    assert "groups alone" in checked(PixelDiversity(), 3)


class Batchwide(PixelDiversity):
    """Compares images of other prompts too."""

    def __call__(self, images, prompts, metadata, group_index=None):
        return super().__call__(images, prompts, metadata, torch.zeros(len(images), dtype=torch.int64))


def by_place(images, prompts, metadata):
    return [score * (1 + i % 2) for i, score in enumerate(brightness(images, prompts, metadata))]


def centred(images, prompts, metadata):
    scores = brightness(images, prompts, metadata)
    return scores - scores.mean()


def at_random(images, prompts, metadata):
    return brightness(images, prompts, metadata) + 0.1 * torch.rand(len(images))


def in_place(images, prompts, metadata):
    metadata[0]["seen"] = True
    return images.mul_(0.5).mean((1, 2, 3))


def needs_several(images, prompts, metadata):
    if len(images) < 2:
        raise UserError("give more images")
    return brightness(images, prompts, metadata)


def contrast(images, prompts, metadata):
    """NaN where all pixels are equal."""
    scores = images.flatten(1)
    return ((scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)).abs().mean(1)


def of_one_size(images, prompts, metadata):
    return (images * torch.ones(24, 24)).mean((1, 2, 3))


@pytest.mark.parametrize(
    ("reward", "size", "wrong"),
    [
        (by_place, 1, ["another order", "images alone"]),
        (centred, 1, ["images alone"]),
        (at_random, 1, ["the same again", "another order", "images alone"]),
        (in_place, 1, ["input unchanged"]),
        (needs_several, 1, ["images alone"]),
        (contrast, 1, ["black", "white"]),
        (of_one_size, 1, ["16 pixels", "1024 pixels"]),
        (lambda images, *_: images.mean((2, 3)), 1, ["scores"]),
        (lambda images, *_: images.mean(), 1, ["scores"]),
        (lambda images, *_: [1 / 0 for _ in images], 1, ["scores"]),
        (Batchwide(), 3, ["groups alone"]),
    ],
)
def test_each_wrong_reward_fails_where_it_is_wrong(reward, size, wrong):
    assert failed(reward, size) == wrong


def test_what_is_told():
    found = checked(with_parts)
    assert found["scores"].found == "6 finite numbers of mine, mine/part, returned as dict of list, ndarray of float32"
    assert found["white"].found == "mine 1, mine/part 0"
    low, high = brightness(IMAGES, [], []).aminmax()
    assert found["range of mine"].found.startswith(f"{low:.4g} to {high:.4g}, mean")
    assert "1 image " in found["time"].found
    assert "6 images " in found["time"].found
    assert checked(in_place)["input unchanged"].found == "changes images, metadata in place"
    assert checked(contrast)["black"].found == "returned nan for mine; scores must be finite"
    assert "tells none" in checked(lambda images, *_: [1.0] * len(images))["range of mine"].found
    assert checked(lambda images, *_: images.mean((2, 3)))["scores"].found.startswith("returned shape (6, 3) for mine")


def test_the_tolerance_is_in_deviations_of_the_scores():
    """The first of a call scores a twentieth of a deviation more."""
    deviation = brightness(IMAGES, [], []).std().item()

    def nearly(images, prompts, metadata):
        return brightness(images, prompts, metadata) + 0.05 * deviation * (torch.arange(len(images)) == 0)

    assert {check for check, found in checked(nearly).items() if found.passed is False} == {
        "another order",
        "images alone",
    }
    assert not [check for check, found in checked(nearly, 1, 0.1).items() if found.passed is False]


def test_a_clear_refusal_is_told_and_no_failure():
    def small_only(images, prompts, metadata):
        if images.shape[2] > 24:
            raise UserError("too large")
        return brightness(images, prompts, metadata)

    found = checked(small_only)["1024 pixels"]
    assert (found.passed, found.found) == (None, "refused: too large")
    with pytest.raises(UserError, match="reads include from every prompt's metadata"):
        checked(requires("include")(lambda *_: [0.0] * 6))
