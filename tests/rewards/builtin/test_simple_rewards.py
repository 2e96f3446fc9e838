"""Rewards without a model: sign and unit."""

import io

import pytest
import torch
from PIL import Image

from dgpo.core.seeds import generator
from dgpo.rewards.base import call_reward
from dgpo.rewards.registry import resolve

FLAT, NOISE = torch.full((1, 3, 64, 64), 0.5), torch.rand(1, 3, 64, 64, generator=generator(0, "test"))


def score(name, images):
    return call_reward(name, resolve(name), images, ["x"] * len(images), [{}] * len(images))[name]


def test_jpeg_sizes_are_kilobytes_of_the_file():
    file = io.BytesIO()
    pixels = (NOISE[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    size = score("jpeg_incompressibility", NOISE)
    assert size.tolist() == pytest.approx([len(file.getvalue()) / 1000])
    assert 3 < size.item() < 12
    assert torch.equal(score("jpeg_compressibility", NOISE), -size)


def test_smooth_pictures_are_smaller():
    smooth, rough = score("jpeg_compressibility", torch.cat([FLAT, NOISE]))
    assert rough < smooth < 0


def test_brightness_and_redness():
    black, white, red = (
        torch.zeros(3, 4, 4),
        torch.ones(3, 4, 4),
        torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 4, 4),
    )
    images = torch.stack([black, white, red, 1 - red])
    assert score("brightness", images).tolist() == pytest.approx([0, 1, 1 / 3, 2 / 3])
    assert score("redness", images).tolist() == pytest.approx([0, 0, 1, -1])
