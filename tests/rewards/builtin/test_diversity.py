"""Distances between the pictures of a prompt, in pixels and in CLIP's space."""

from __future__ import annotations

import pytest
import torch
from tiny_published import save_clip

from dgpo.core import seeds
from dgpo.errors import UserError
from dgpo.rewards.builtin.diversity import ClipDiversity, PixelDiversity
from dgpo.rewards.combine import RewardSet

NOISE = torch.rand(6, 3, 32, 32, generator=seeds.generator(0, "noise"))
PROMPTS = ["a", "b", "a", "b", "a", "b"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return ClipDiversity(str(save_clip(tmp_path_factory.mktemp("clip"))), device="cpu")


def test_pixel_distances_by_hand():
    """Grey pictures at 0, 0.1 and 0.4: the first is 0.1 and 0.4 from the others."""
    images = torch.tensor([0.0, 0.1, 0.4])[:, None, None, None].expand(3, 3, 8, 8)
    assert PixelDiversity()(images, ["a"] * 3, [{}] * 3).tolist() == pytest.approx([0.25, 0.2, 0.35])
    assert PixelDiversity()(NOISE, ["a"] * 6, [{}] * 6).tolist() == pytest.approx([6**-0.5] * 6, abs=0.02)


def test_clip_distances_are_those_of_its_embeddings(clip):
    embeds = clip.towers.image_embeds(NOISE[:3])
    cosines = (embeds[0] @ embeds[1], embeds[0] @ embeds[2], embeds[1] @ embeds[2])
    first, second, third = (1 - cosine.item() for cosine in cosines)
    expected = [(first + second) / 2, (first + third) / 2, (second + third) / 2]
    assert clip(NOISE[:3], ["a"] * 3, [{}] * 3).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["pixel", "clip"])
def test_groups_are_apart(kind, clip):
    """By prompt or by index; copies are at distance 0, and one picture alone has none."""
    score = {"pixel": PixelDiversity(), "clip": clip}[kind]
    whole = score(NOISE, PROMPTS, [{}] * 6)
    alone = [score(NOISE[start::2], PROMPTS[start::2], [{}] * 3) for start in (0, 1)]
    assert torch.allclose(whole, torch.stack(alone, 1).flatten(), atol=1e-6)
    index = torch.tensor([0, 1, 0, 1, 0, 1])
    assert torch.equal(score(NOISE, ["same"] * 6, [{}] * 6, index), whole)
    assert score(NOISE[:1].expand(3, -1, -1, -1), ["a"] * 3, [{}] * 3).abs().max() < 1e-6
    with pytest.raises(UserError, match="'b' has only one; draw at least 2"):
        score(NOISE[:3], PROMPTS[:3], [{}] * 3)


def test_it_is_watched_by_name():
    rewards = RewardSet({"brightness": 1.0}, watched=["pixel_diversity"])
    assert rewards(NOISE, PROMPTS, [{}] * 6)[0]["pixel_diversity"].min() > 0.3
