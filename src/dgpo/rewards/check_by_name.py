"""Puts a reward, by its name, to the test of `check.py`: on one's own pictures or on renders of the embedded world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dgpo.core import seeds
from dgpo.data.image_folder import captions, find_pictures, load_images, picture_size, read_folder
from dgpo.data.prompts import load_prompts
from dgpo.errors import UserError
from dgpo.rewards.base import Batch, needs_group
from dgpo.rewards.check import Finding, check_reward
from dgpo.rewards.registry import resolve
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import draw, requests

WORLD = "shapes:seen"


def check_by_name(
    name: str, images: Path | None, prompts: str | None, batch: int, tolerance: float
) -> tuple[Batch, list[Finding]]:
    """Check the reward, and return the batch it was shown and what was found.

    images, prompts: a folder of pictures and a source of prompts; None: the embedded world's, and the captions
    """
    reward = resolve(name)
    groups = needs_group(reward)
    if batch < (least := 4 if groups else 2):
        raise UserError(f"--batch {batch} leaves nothing to compare; give at least {least}")
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance {tolerance} must be in [0, 1): it is a share of the scores' deviation")
    shown = _batch(images, prompts, batch, batch // 2 if groups else 1)
    try:
        return shown, check_reward(name, reward, shown, tolerance)
    except UserError as error:
        given = prompts or (WORLD if images is None else f"{images}'s captions")
        raise UserError(f"{error}. The prompts were {given}; --prompts gives others") from error


def _batch(folder: Path | None, source: str | None, number: int, size: int) -> Batch:
    """About `number` pictures of one size; `size` pictures in a row share a prompt."""
    number -= number % size
    if folder is None:
        prompts, images = load_prompts(source or WORLD), _world_images(number, size)
    elif source is None:
        pictures = read_folder(folder)
        pictures = [picture for picture in pictures if picture.size == pictures[0].size]
        prompts = captions(pictures)
        images = _some([picture.path for picture in pictures], number, folder)
    else:
        paths = find_pictures(folder)
        shape = picture_size(paths[0])
        images = _some([path for path in paths if picture_size(path) == shape], number, folder)
        prompts = load_prompts(source)
    group_index = torch.arange(len(images)) // size
    rows = prompts.subset(group % len(prompts) for group in group_index.tolist())
    return Batch(images, rows.prompts, rows.metadata, group_index)


def _some(paths: Sequence[Path], number: int, folder: Path) -> Tensor:
    if len(paths) < number:
        raise UserError(
            f"{folder} has {len(paths)} pictures of the first one's size, and the check takes {number}; give more, or "
            f"a smaller --batch"
        )
    return load_images(paths[:number])


def _world_images(number: int, size: int) -> Tensor:
    """Renders of the embedded world; every second one shows what another prompt asks for."""
    prompts = load_prompts(WORLD).metadata
    wanted = [prompts[(i // size + i % 2) % len(prompts)] for i in range(number)]
    return render(draw(requests(wanted), seeds.generator(0, "reward check")))
