"""CLIP's preprocessing on tensors against the image processor of transformers, which works on pictures by Pillow."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.models.clip import CLIPImageProcessor

from dgpo.core.seeds import generator
from dgpo.errors import UserError
from dgpo.rewards.builtin.preprocess import CLIP_STD, Preprocess, eight_bit, published

OURS, THEIRS = Preprocess(), CLIPImageProcessor()
LEVEL = torch.tensor(CLIP_STD)[:, None, None] * 255  # of 255, in normalised units


def pictures(height, width, smooth):
    rng = generator(0, "test")
    if smooth:
        return F.interpolate(torch.rand(2, 3, 9, 9, generator=rng), (height, width), mode="bicubic").clamp(0, 1)
    return torch.rand(2, 3, height, width, generator=rng)


def reference(images):
    files = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    return THEIRS(images=files, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("size", [(512, 512), (64, 64), (300, 301), (201, 350), (1024, 768)])
def test_at_most_two_levels_from_the_published_processor_and_rarely_any(size, smooth):
    images = pictures(*size, smooth)
    levels = ((OURS(images) - reference(images)) * LEVEL).abs()
    assert levels.max() < 2.01
    assert (levels > 0.5).float().mean() < 0.01


def test_equal_where_nothing_is_resized():
    images = pictures(224, 224, False)
    torch.testing.assert_close(OURS(images), reference(images), rtol=0, atol=1e-6)


def test_a_picture_saved_as_a_file_gives_the_same():
    images = pictures(96, 64, True)
    assert torch.equal(OURS(images), OURS(eight_bit(images)))


def test_settings_are_those_of_the_processor():
    mine = CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0, 0, 0], image_std=[1, 1, 1]
    )
    assert published(mine, "mine") == Preprocess(40, 32, (0, 0, 0), (1, 1, 1))
    assert published(THEIRS, "theirs") == OURS
    assert published(mine, "mine")(pictures(64, 80, True)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    "setting",
    [{"resample": 2}, {"do_center_crop": False}, {"do_normalize": False}, {"size": {"height": 4, "width": 4}}],
)
def test_other_kinds_of_processor_are_refused(setting):
    with pytest.raises(UserError, match="image processor of other is not of CLIP's kind"):
        published(CLIPImageProcessor(**setting), "other")
