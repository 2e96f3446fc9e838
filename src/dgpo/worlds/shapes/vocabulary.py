"""The words of the world and what they mean in pixels.

Colours are far apart in RGB and from every tint of the ground (worlds/common/ground.py), so that a picture has one
right reading.
"""

from __future__ import annotations

MAX_OBJECTS = 4

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
PLURALS = {"cross": "crosses"}

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 135, 10),
    "yellow": (240, 215, 0),
    "green": (40, 150, 55),
    "cyan": (30, 195, 205),
    "blue": (40, 70, 215),
    "purple": (140, 45, 175),
    "black": (30, 30, 30),
}

COUNTS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def plural(shape: str) -> str:
    return PLURALS.get(shape, shape + "s")
