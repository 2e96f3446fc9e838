"""The renderer: areas by geometry, antialiasing, colours, and later objects over earlier ones."""

import math

import pytest
import torch
from pictures import drawn, picture, scene

from dgpo.worlds.common.ground import TINTS
from dgpo.worlds.shapes.render import coverage, render
from dgpo.worlds.shapes.vocabulary import COLORS, SHAPES

UNIT_AREAS = {  # of radius 1, by geometry; the renderer cuts the star's tips by its circle
    "circle": math.pi * 0.92**2,
    "square": (2 * 0.76) ** 2,
    "triangle": 3 * math.sqrt(3) / 4,
    "diamond": 2.0,
    "cross": 2 * (2 * 0.92 * 2 * 0.3) - (2 * 0.3) ** 2,
    "star": 5 * 0.36**2 * math.tan(math.pi / 5) + 5 * (0.36 * math.tan(math.pi / 5)) ** 2 / math.tan(math.pi / 10),
}


def cover(shape, x, y, radius, size=64):
    return coverage(torch.tensor([SHAPES.index(shape)]), torch.tensor([[x, y]]), torch.tensor([radius]), size)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_area_and_centroid(shape):
    for radius in (8.0, 11.3, 15.0):
        found = cover(shape, 30.3, 33.8, radius)
        area = found.sum()
        assert area / radius**2 == pytest.approx(UNIT_AREAS[shape], rel=0.03)
        axis = torch.arange(64) + 0.5
        center = (found.sum(0) @ axis / area).item(), (found.sum(1) @ axis / area).item()
        assert center == pytest.approx((30.3, 33.8), abs=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_lies_in_its_circle_and_nearly_fills_it(shape):
    found = cover(shape, 32.0, 32.0, 12.0)
    axis = torch.arange(64) + 0.5 - 32
    far = torch.hypot(axis[:, None], axis[None]) * (found > 0.5)
    assert 0.8 * 12 < far.max() < 1.1 * 12


def test_triangles_stand_and_stars_point_up():
    for shape in ("triangle", "star"):
        rows = (cover(shape, 32.0, 32.0, 14.0) > 0.5).sum(1)
        top = rows.nonzero()[0, 0]
        assert rows[top] < rows[top + 6] < rows.max() + 1
        assert top < 32 - 11


def test_edges_are_one_pixel_wide_and_nothing_is_drawn_for_no_object():
    found = cover("square", 32.25, 32.0, 10.0)[32]
    assert ((found > 0) & (found < 1)).sum() == 2
    assert cover("circle", 32.0, 32.0, 10.0).max() == 1
    empty = coverage(torch.tensor([-1]), torch.tensor([[32.0, 32.0]]), torch.tensor([10.0]))
    assert empty.abs().sum() == 0


def test_pixels_have_the_palettes_colours():
    for tint, ground in enumerate(TINTS):
        for color, paint in COLORS.items():
            image = picture(("circle", color, 32, 32, 12), tint=tint)[0] * 255
            assert image[:, 32, 32].tolist() == pytest.approx(paint, abs=0.01)
            assert image[:, 2, 2].tolist() == pytest.approx(ground, abs=0.01)


def test_later_objects_cover_earlier_ones():
    image = picture(("square", "red", 32, 32, 12), ("circle", "blue", 36, 32, 10))[0] * 255
    assert image[:, 32, 34].tolist() == pytest.approx(COLORS["blue"], abs=0.01)
    assert image[:, 32, 24].tolist() == pytest.approx(COLORS["red"], abs=0.01)


def test_images_are_in_range_and_rows_are_independent():
    _, scenes, images = drawn(12, key=3)
    assert images.shape == (12, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1
    alone = render(type(scenes)(*(part[5:6] for part in scenes)))
    assert torch.equal(alone[0], images[5])


def test_size_is_free():
    assert render(scene(("star", "red", 32, 32, 12)), size=96).shape == (1, 3, 96, 96)
