"""Before and after: the same prompts and noise, drawn at the first and at the last evaluation.

A page to send to others has them embedded (`embedded`); a page that is served names their addresses.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dgpo.report.grids import Samples
from dgpo.report.marks import Mark, Marking, marking

MAX_PICTURES, TINY, LARGEST = 48, 128, 384


Address = Callable[[Path], str]
"""Takes the file of a picture, and returns what a page loads it from."""


class Tile(NamedTuple):
    """One picture."""

    image: str  # what it is loaded from
    size: str  # tiny or large: a tiny one is enlarged by whole pixels
    mark: Mark | None


class Row(NamedTuple):
    """The pictures of one prompt at one iteration."""

    iteration: int
    tiles: list[Tile]


class Pictures(NamedTuple):
    """(prompt, its row at each of the iterations compared), and how the pictures are marked."""

    iterations: list[int]  # the first and the last; one before a second evaluation
    cards: list[tuple[str, list[Row]]]
    images_per_prompt: int
    prompts: int  # of which cards show the first
    marking: Marking | None
    change: str  # of the mark over all pictures shown, empty before a second evaluation


def embedded(path: Path) -> str:
    """The picture as a data URI: a tiny one exactly as drawn, a large one made smaller, as WebP."""
    return _data_uri(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4 * MAX_PICTURES)
def _data_uri(path: Path, modified: int) -> str:
    """Kept, because a run writes its page at every evaluation; `modified` tells a picture that was drawn again."""
    if is_tiny(path):
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f"data:image/webp;base64,{base64.b64encode(smaller(path, LARGEST)).decode()}"


def is_tiny(path: Path) -> bool:
    """Whether a picture is shown by whole pixels."""
    with Image.open(path) as image:
        return max(image.size) <= TINY


def smaller(path: Path, most: int) -> bytes:
    """A picture as WebP, at most so many pixels wide and high."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((most, most))
        image.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


def pictures(samples: Samples | None, config: Mapping[str, Any], address: Address = embedded) -> Pictures | None:
    """The same prompts and noise at the first and the last evaluation."""
    if not samples:
        return None
    iterations, k = sorted({min(samples.iterations), max(samples.iterations)}), samples.images_per_prompt
    marked_by = marking([samples.scores[i] for i in iterations], config)
    prompts = samples.prompts[::k]
    shown = min(len(prompts), max(1, MAX_PICTURES // k))
    cards = [
        (prompt, [picture_row(samples, i, range(p * k, p * k + k), marked_by, address) for i in iterations])
        for p, prompt in enumerate(prompts[:shown])
    ]
    change = ""
    if marked_by and len(iterations) > 1:
        change = marked_by.change(*(samples.scores[i][marked_by.score][: shown * k] for i in iterations))
    return Pictures(iterations, cards, k, len(prompts), marked_by, change)


def picture_row(samples: Samples, iteration: int, places: range, marked_by: Marking | None, address: Address) -> Row:
    """Some pictures of one iteration with their marks."""
    scores = samples.scores[iteration][marked_by.score] if marked_by else []
    tiles = [samples.iterations[iteration][place] for place in places]
    marks = [marked_by.mark(scores[place]) if marked_by else None for place in places]
    return Row(iteration, [_tile(path, mark, address) for path, mark in zip(tiles, marks)])


def _tile(path: Path, mark: Mark | None, address: Address) -> Tile:
    return Tile(address(path), "tiny" if is_tiny(path) else "large", mark)
