"""Crispness falls with every way of spoiling a picture; diversity sees collapse and does not pay for failing."""

from itertools import pairwise

import pytest
import torch
from pictures import blurred, drawn, noisy, picture, ragged, washed

from dgpo.core.seeds import generator
from dgpo.worlds.shapes import metrics
from dgpo.worlds.shapes.detector import detect
from dgpo.worlds.shapes.prompts import all_prompts
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import draw, requests
from dgpo.worlds.shapes.vocabulary import KINDS


def crispness(images):
    return metrics.crispness(images, detect(images))


def diversity(images, group_index, metadata):
    return metrics.diversity(detect(images), group_index, metadata)


def test_clean_renders_are_crisp():
    images = drawn(200)[2]
    assert crispness(images).min() > 0.965
    assert crispness(images).mean() > 0.99
    assert crispness((images * 255).round() / 255).mean() > 0.985


@pytest.mark.parametrize(
    ("spoil", "steps"),
    [
        (blurred, (0.45, 0.6, 0.9, 1.3)),
        (noisy, (0.01, 0.02, 0.04, 0.08)),
        (ragged, (0.3, 0.6, 1.0, 1.5)),
        (washed, (0.98, 0.95, 0.9, 0.8)),
    ],
)
def test_crispness_falls_step_by_step(spoil, steps):
    images = drawn(40)[2]
    means = [crispness(images).mean().item(), *(crispness(spoil(images, step)).mean().item() for step in steps)]
    assert all(after < before - 0.02 for before, after in pairwise(means))


def test_unknown_blobs_cost_crispness():
    square = ("square", "green", 16, 18, 9)
    clean = crispness(picture(square))
    beside_unknown = crispness(picture(square, ("circle", "red", 44, 44, 4.5)))
    assert beside_unknown < clean - 0.1
    assert crispness(picture(square, ("circle", "red", 44, 44, 9))) > 0.97


def test_nothing_is_not_crisp():
    noise = torch.rand(2, 3, 64, 64, generator=generator(0, "test"))
    assert crispness(torch.cat([torch.full_like(noise, 0.98), noise])).tolist() == [0] * 4


def clean(kind, count, key=0, index=5):
    """`count` independent pictures of one prompt, and its metadata for each."""
    prompt = all_prompts(kind)[index]
    return render(draw(requests([prompt] * count), generator(key, "test"))), [prompt] * count


@pytest.mark.parametrize("kind", KINDS)
def test_independent_scenes_have_diversity_one_and_copies_none(kind):
    images, metadata = clean(kind, 40)
    one = torch.zeros(40, dtype=torch.int64)
    assert diversity(images, one, metadata).item() == pytest.approx(1, abs=0.15)
    assert diversity(images[:1].repeat(6, 1, 1, 1), one[:6], metadata[:6]).item() < 0.01


def test_diversity_sees_one_lost_factor():
    prompt = all_prompts("single_object")[1]
    scenes = draw(requests([prompt] * 24), generator(0, "test"))
    group, metadata = torch.zeros(24, dtype=torch.int64), [prompt] * 24

    def measured(**frozen):
        return diversity(render(scenes._replace(**frozen)), group, metadata).item()

    whole = measured()
    for frozen in (
        {"tint": scenes.tint[:1].expand(24)},
        {"color": scenes.color[:1].expand(24, -1)},
        {"radius": scenes.radius[:1].expand(24, -1).clamp(max=11)},
        {"center": scenes.center[:1].expand(24, -1, -1)},
    ):
        assert measured(**frozen) < whole - 0.15


def test_objects_of_one_shape_are_matched_not_told_apart():
    objects = [("circle", "red", 16, 16, 9), ("circle", "blue", 46, 18, 9)]
    images = torch.cat([picture(*objects), picture(*objects[::-1])])
    metadata = [{"include": [{"class": "circle", "count": 2}]}] * 2
    assert diversity(images, torch.zeros(2, dtype=torch.int64), metadata).item() < 0.01


def test_failures_are_left_out():
    images, metadata = clean("counting", 8)
    group = torch.zeros(8, dtype=torch.int64)
    others = drawn(20, key=9)[2][:6]
    mixed = diversity(torch.cat([images[:2], others]), group, metadata)
    assert mixed.item() == pytest.approx(diversity(images[:2], group[:2], metadata[:2]).item())


def test_groups_are_apart_and_one_without_two_right_pictures_is_nan():
    images, metadata = clean("colors", 12)
    group = torch.arange(12) % 3
    found = diversity(torch.where((group == 2)[:, None, None, None], 0.98, images), group, metadata)
    assert found[:2].isfinite().all()
    assert found[2].isnan()
    alone = diversity(images[::3], torch.zeros(4, dtype=torch.int64), metadata[:4])
    assert found[0].item() == pytest.approx(alone.item())
