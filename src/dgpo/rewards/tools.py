"""Rewards outside of a run: `dgpo reward check` puts one to the test, `dgpo score` scores a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from dgpo.core import seeds
from dgpo.core.clusters import numbered, standard_error
from dgpo.data.image_folder import Picture, find_pictures, load_images, picture_size, read_folder
from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.errors import UserError, warn
from dgpo.rewards.base import Batch, needs_group
from dgpo.rewards.check import Finding, check_reward
from dgpo.rewards.combine import RewardSet
from dgpo.rewards.registry import resolve
from dgpo.utils.files import whole
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import draw, requests

WORLD = "shapes:seen"
MARKS = {True: ("passed", "green"), False: ("FAILED", "bold red"), None: ("", "")}


def check_source(
    name: str, images: Path | None, prompts: str | None, batch: int, tolerance: float, as_json: bool
) -> bool:
    """Print how the reward keeps its contract, as a table or as JSON; whether nothing failed."""
    reward = resolve(name)
    groups = needs_group(reward)
    if batch < (least := 4 if groups else 2):
        raise UserError(f"--batch {batch} leaves nothing to compare; give at least {least}")
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance {tolerance} must be in [0, 1): it is a share of the scores' deviation")
    tested = _batch(images, prompts, batch, batch // 2 if groups else 1)
    try:
        findings = check_reward(name, reward, tested, tolerance)
    except UserError as error:
        given = prompts or (WORLD if images is None else f"{images}'s captions")
        raise UserError(f"{error}. The prompts were {given}; --prompts gives others") from error
    passed = all(finding.passed is not False for finding in findings)
    if as_json:
        print(json.dumps({"reward": name, "passed": passed, "findings": [f._asdict() for f in findings]}, indent=2))
    else:
        _print(name, tested, tolerance, findings)
    return passed


def _batch(folder: Path | None, source: str | None, number: int, size: int) -> Batch:
    """About `number` pictures of one size; `size` pictures in a row share a prompt."""
    number -= number % size
    if folder is None:
        prompts, images = load_prompts(source or WORLD), _world_images(number, size)
    elif source is None:
        pictures = read_folder(folder)
        pictures = [picture for picture in pictures if picture.size == pictures[0].size]
        prompts = _captions(pictures)
        images = _some([picture.path for picture in pictures], number, folder)
    else:
        paths = find_pictures(folder)
        shape = picture_size(paths[0])
        images = _some([path for path in paths if picture_size(path) == shape], number, folder)
        prompts = load_prompts(source)
    group_index = torch.arange(len(images)) // size
    rows = prompts.subset(group % len(prompts) for group in group_index.tolist())
    return Batch(images, rows.prompts, rows.metadata, group_index)


def _captions(pictures: Sequence[Picture]) -> PromptSet:
    """Their prompts, with the pictures' names for places."""
    return PromptSet([p.prompt for p in pictures], [p.metadata for p in pictures], [p.name for p in pictures])


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


def _print(name: str, tested: Batch, tolerance: float, findings: Sequence[Finding]) -> None:
    out = Console(emoji=False, highlight=False)
    height, width = tested.images.shape[2:]
    table = Table("check", "", "found", title_justify="left")
    for finding in findings:
        word, style = MARKS[finding.passed]
        table.add_row(finding.check, f"[{style}]{word}[/]" if word else "", _plain(finding.found))
    failed = sum(finding.passed is False for finding in findings)
    out.print(_plain(f"{name}: {len(tested.prompts)} images of {width}x{height}, tolerance {tolerance:g} deviations"))
    out.print(table)
    out.print(f"{failed} failed" if failed else "all passed", style="bold red" if failed else "green")


def _plain(text: str) -> str:
    """Brackets of a text are no styles."""
    return text.replace("[", r"\[")


def score_folder(folder: Path, rewards: Mapping[str, float], batch_size: int, out: Path | None) -> Path:
    """Score every picture, write a line each into a new file, and print means with their standard errors."""
    path = out or folder / "scores.jsonl"
    if path.exists():
        raise UserError(f"{path} exists and is not replaced; choose another --out")
    if not rewards or batch_size < 1:
        raise UserError("there is nothing to score: give at least one --rewards NAME and --batch-size 1 or more")
    reward, pictures = RewardSet(rewards), read_folder(folder)
    warn(reward.check(_captions(pictures)))
    found: list[dict[str, float]] = [{} for _ in pictures]
    for rows in _batches(pictures, batch_size, any(map(needs_group, reward.rewards.values()))):
        batch = [pictures[row] for row in rows]
        images = load_images([picture.path for picture in batch])
        scores, total = reward(images, [p.prompt for p in batch], [p.metadata for p in batch])
        for place, row in enumerate(rows):
            found[row] = {name: values[place].item() for name, values in {**scores, "reward": total}.items()}
    lines = [{"file_name": p.name, "prompt": p.prompt, **scores} for p, scores in zip(pictures, found)]
    with whole(path) as unfinished:
        unfinished.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    _print_means(found, numbered([picture.prompt for picture in pictures]))
    return path


def _batches(pictures: Sequence[Picture], batch_size: int, whole_prompts: bool) -> Iterator[list[int]]:
    """Places of pictures of one size; all pictures of a prompt together where rewards compare them, if ever so many."""
    sizes: dict[tuple[int, int], dict[Any, list[int]]] = {}
    for row, picture in enumerate(pictures):
        unit = picture.prompt if whole_prompts else row
        sizes.setdefault(picture.size, {}).setdefault(unit, []).append(row)
    for units in sizes.values():
        batch: list[int] = []
        for rows in units.values():
            if batch and len(batch) + len(rows) > batch_size:
                yield batch
                batch = []
            batch = batch + rows
        yield batch


def _print_means(rows: Sequence[Mapping[str, float]], prompt: Tensor) -> None:
    """prompt: (images,) int64, the same number for images of the same prompt."""
    table = Table("score", Column("mean", justify="right"), Column("standard error", justify="right"))
    for score in rows[0]:
        values = torch.tensor([row[score] for row in rows], dtype=torch.float64)
        error = standard_error(values, prompt)
        table.add_row(score, f"{values.mean().item():.4f}", "" if error is None else f"{error:.4f}")
    out = Console(markup=False, emoji=False, highlight=False)
    out.print(f"{len(rows)} images of {len(prompt.unique())} prompts; standard errors are over prompts")
    out.print(table)
