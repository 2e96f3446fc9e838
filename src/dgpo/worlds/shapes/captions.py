"""Captions for pretraining, about a third of them wrong in meaning.

A model learns to draw whatever the pictures are, and to believe the captions only as far as they are right: like one
trained on the web, the result draws crisply and follows prompts badly. That is the fault reinforcement learning mends.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgpo.worlds.shapes.prompts import all_prompts
from dgpo.worlds.shapes.vocabulary import COLORS, KINDS

# The share of captions of each kind that say something else than the picture shows.
WRONG = {
    "single_object": 0.1,
    "two_object": 0.35,
    "counting": 0.5,
    "colors": 0.42,
    "position": 0.35,
    "color_attr": 0.35,
}
# The share of each kind among the pictures: scenes of two and more shapes are harder to draw and get more of them.
SHARE = {
    "single_object": 0.06,
    "two_object": 0.2,
    "counting": 0.2,
    "colors": 0.1,
    "position": 0.22,
    "color_attr": 0.22,
}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class Captions(NamedTuple):
    """Every prompt of the world (P of them) and the wrong captions a picture of it may get (W places)."""

    prompts: list[dict[str, Any]]
    kind: Tensor  # (P,) int64 index into KINDS
    wrong: Tensor  # (P, W) int64 row of another prompt
    num_wrong: Tensor  # (P,) int64 how many of the W places are used

    def to(self, device: torch.device | str) -> Captions:
        return Captions(self.prompts, *(part.to(device) for part in self[1:]))


def build_captions() -> Captions:
    """The table of all prompts with their wrong captions."""
    prompts = [p for kind in KINDS for p in all_prompts(kind)]
    rows = {p["prompt"]: row for row, p in enumerate(prompts)}
    lists = [[rows[text] for text in _wrong_captions(p, prompts)] for p in prompts]
    wrong = torch.zeros(len(prompts), max(map(len, lists)), dtype=torch.int64)
    for row, others in enumerate(lists):
        wrong[row, : len(others)] = torch.tensor(others)
    kind = torch.tensor([KINDS.index(p["tag"]) for p in prompts])
    return Captions(prompts, kind, wrong, torch.tensor([len(others) for others in lists]))


def draw_prompts(captions: Captions, count: int, generator: torch.Generator) -> Tensor:
    """Rows of prompts (count,), each kind as often as SHARE says."""
    device = generator.device
    shares = torch.tensor([SHARE[kind] for kind in KINDS], device=device)
    kind = torch.multinomial(shares, count, replacement=True, generator=generator)
    sizes = torch.bincount(captions.kind, minlength=len(KINDS))
    first = sizes.cumsum(0) - sizes
    share = torch.rand(count, generator=generator, device=device)
    return first[kind] + (share * sizes[kind]).long()


def caption_rows(captions: Captions, rows: Tensor, generator: torch.Generator, wrong: dict[str, float]) -> Tensor:
    """The caption (n,) that pictures of the prompts `rows` (n,) get: their own, or now and then a wrong one."""
    device = rows.device
    rate = torch.tensor([wrong[kind] for kind in KINDS], device=device)[captions.kind[rows]]
    draw = torch.rand(2, len(rows), generator=generator, device=device)
    place = (draw[0] * captions.num_wrong[rows]).long()
    return torch.where(draw[1] < rate, captions.wrong[rows, place], rows)


def _wrong_captions(prompt: dict[str, Any], prompts: list[dict[str, Any]]) -> list[str]:
    """Texts of prompts of the same kind that differ in the one thing the kind is about."""
    objects = prompt["include"]
    same_kind = [p for p in prompts if p["tag"] == prompt["tag"] and p is not prompt]
    match prompt["tag"]:
        case "single_object":
            chosen = same_kind
        case "two_object":
            chosen = [p for p in same_kind if any(a == b for a, b in zip(p["include"], objects))]
        case "counting":
            chosen = [p for p in same_kind if p["include"][0]["class"] == objects[0]["class"]]
        case "colors":
            confused = list(COLORS)[list(COLORS).index(objects[0]["color"]) ^ 1]
            chosen = [p for p in same_kind if p["include"] == [objects[0] | {"color": confused}]]
        case "position":
            flipped = [_OPPOSITE[objects[1]["position"][0]], 0]
            chosen = [p for p in same_kind if p["include"] == [objects[0], objects[1] | {"position": flipped}]]
        case _:
            first, second = objects
            swapped = [first | {"color": second["color"]}, second | {"color": first["color"]}]
            chosen = [p for p in same_kind if p["include"] == swapped]
    return [p["prompt"] for p in chosen]
