"""Before and after: the same prompts and noise, drawn at the first and at the last evaluation, embedded in the page."""

from __future__ import annotations

import base64
import io
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dgpo.report.grids import Samples

MAX_PICTURES, TINY, LARGEST = 48, 128, 384


class Pair(NamedTuple):
    """One picture before and after, as data URIs."""

    before: str
    after: str


class Pictures(NamedTuple):
    """(prompt, its pairs) in order, and the two iterations compared; the same one twice before a second evaluation."""

    first: int
    last: int
    cards: list[tuple[str, list[Pair]]]
    shown: int
    total: int


def pictures(samples: Samples | None) -> Pictures | None:
    """The same prompts and noise at the first and the last evaluation."""
    if not samples:
        return None
    first, last = min(samples.iterations), max(samples.iterations)
    tiles = list(zip(samples.prompts, samples.iterations[first], samples.iterations[last]))[:MAX_PICTURES]
    groups = groupby(tiles, key=lambda tile: tile[0])
    cards = [(prompt, [Pair(_data_uri(a), _data_uri(b)) for _, a, b in group]) for prompt, group in groups]
    return Pictures(first, last, cards, len(tiles), len(samples.prompts))


def _data_uri(path: Path) -> str:
    """Tiny pictures exactly as drawn; large ones made smaller, as WebP."""
    with Image.open(path) as image:
        if max(image.size) <= TINY:
            return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        buffer = io.BytesIO()
        image.thumbnail((LARGEST, LARGEST))
        image.save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
