"""The detector is right on clean and on mildly spoilt renders, and calls what is no object unknown."""

import math

import pytest
import torch
from pictures import blurred, drawn, is_right, noisy, picture, ragged, washed
from torch.nn.functional import affine_grid, grid_sample

from dgpo.errors import UserError
from dgpo.worlds.common.ground import TINTS
from dgpo.worlds.shapes.detector import detect
from dgpo.worlds.shapes.vocabulary import COLORS, SHAPES


def share_right(scenes, images):
    return sum(is_right(seen, scenes, row) for row, seen in enumerate(detect(images))) / len(images)


def test_clean_renders_of_all_kinds_are_read_fully():
    _, scenes, images = drawn(500)
    assert share_right(scenes, images) >= 0.995
    assert [seen.tint for seen in detect(images)] == scenes.tint.tolist()


@pytest.mark.slow
def test_blur_noise_and_washed_colours_are_borne():
    _, scenes, images = drawn(250, key=1)
    assert share_right(scenes, noisy(washed(blurred(images, 0.6), 0.95), 0.03)) >= 0.98
    assert share_right(scenes, noisy(images, 0.06)) >= 0.98
    assert share_right(scenes, blurred(images, 0.9)) >= 0.98


def test_a_shifted_tint_is_borne():
    _, scenes, images = drawn(100, key=2)
    shift = torch.tensor([-0.03, 0.02, -0.02])[:, None, None]
    assert share_right(scenes, (images + shift).clamp(0, 1)) >= 0.98


def test_sizes_and_positions_are_exact():
    (seen,) = detect(picture(("star", "purple", 20.3, 41.6, 11.4)))
    (found,) = seen.objects
    assert found.center == pytest.approx((20.3, 41.6), abs=0.1)
    assert found.radius == pytest.approx(11.4, abs=0.15)
    assert found.score > 0.95


def test_touching_objects_of_different_colours_are_two():
    (seen,) = detect(picture(("square", "red", 22, 30, 11), ("square", "green", 22 + 2 * 0.76 * 11, 30, 11)))
    assert sorted((o.shape, o.color) for o in seen.objects) == [("square", "green"), ("square", "red")]


def test_touching_objects_of_one_colour_are_an_unknown_blob():
    (seen,) = detect(picture(("circle", "red", 20, 30, 11), ("circle", "red", 38, 30, 11)))
    assert [(o.shape, o.color) for o in seen.objects] == [(None, None)]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_its_own_best_match(shape):
    for tint in range(len(TINTS)):
        images = torch.cat([picture((shape, color, 31.5, 30.2, 9.0), tint=tint) for color in COLORS])
        found = [seen.objects for seen in detect(images)]
        assert [[(o.shape, o.color) for o in objects] for objects in found] == [[(shape, c)] for c in COLORS]


def unknown(image):
    (seen,) = detect(image)
    return [o.shape for o in seen.objects] == [None]


def test_what_is_no_object_is_unknown():
    assert unknown(picture(("circle", "blue", 32, 32, 4.5)))  # too small
    assert unknown(picture(("circle", "blue", 32, 32, 24)))  # too large
    assert unknown(picture(("triangle", "blue", 32, 32, 12)).flip(2))  # upside down
    assert unknown(torch.lerp(picture(), picture(("circle", "blue", 32, 32, 12)), 0.6))  # pale
    assert unknown(picture().index_fill(2, torch.arange(20, 30), 0.1))  # a bar
    ring = picture(("circle", "red", 32, 32, 13))
    hole = (torch.arange(64) - 32).square()[:, None] + (torch.arange(64) - 32).square() < 60
    assert unknown(torch.where(hole, torch.tensor(TINTS[0])[:, None, None] / 255, ring))
    brown = picture(("circle", "red", 32, 32, 12))
    brown[:, 0] = torch.where(brown[:, 1] < 0.3, 0.45, brown[:, 0])
    assert unknown(brown)


@pytest.mark.parametrize(
    ("shape", "degrees"), [("square", 22), ("triangle", 30), ("cross", 45), ("star", 36), ("star", 18)]
)
def test_turned_shapes_are_unknown(shape, degrees):
    turn = torch.tensor(degrees * math.pi / 180)
    matrix = torch.tensor([[turn.cos(), -turn.sin(), 0.0], [turn.sin(), turn.cos(), 0.0]])
    assert unknown(bent(picture((shape, "blue", 32, 32, 12)), matrix))


def test_stretched_shapes_are_unknown():
    matrix = torch.tensor([[0.85, 0.0, 0.0], [0.0, 1.15, 0.0]])
    for shape in ("circle", "square"):
        assert unknown(bent(picture((shape, "blue", 32, 32, 12)), matrix))
        assert not unknown(bent(picture((shape, "blue", 32, 32, 12)), torch.eye(3)[:2]))


def bent(image, matrix):
    grid = affine_grid(matrix[None], list(image.shape), align_corners=False)
    return grid_sample(image, grid, padding_mode="border", align_corners=False)


def test_rough_outlines_are_borne_alike_by_stout_and_slim_shapes():
    for shape in SHAPES:
        images = torch.cat([picture((shape, "blue", 32, 32, radius)) for radius in (10.0, 12.0, 14.0)])
        found = [[o.shape for o in seen.objects] for seen in detect(ragged(images, 0.8))]
        assert found == [[shape]] * 3


def test_specks_and_hairlines_are_ignored_and_small_dots_are_not():
    image = picture(("square", "black", 40, 40, 10))
    image[0, :, 5, 5:30] = 0.0  # a line of one pixel
    image[0, :, 10:12, 10:12] = 0.0  # a dot of four
    assert len(detect(image)[0].objects) == 1
    image[0, :, 20:23, 20:23] = 0.0
    assert [o.shape for o in detect(image.clone())[0].objects].count(None) == 1


def test_blank_and_noise_hold_nothing():
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert not any(o.shape for seen in detect(noise) for o in seen.objects)
    assert not detect(torch.ones(1, 3, 64, 64))[0].objects


def test_other_sizes_are_refused():
    with pytest.raises(UserError, match=r"64, 64\); got \(2, 3, 32, 32\)"):
        detect(torch.zeros(2, 3, 32, 32))
