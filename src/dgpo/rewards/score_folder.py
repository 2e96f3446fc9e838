"""The pictures of a folder are scored by rewards, size by size, into one line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgpo.data.image_folder import Picture, captions, load_images, read_folder
from dgpo.errors import UserError, warn
from dgpo.rewards.base import needs_group
from dgpo.rewards.combine import RewardSet
from dgpo.utils.files import whole


def score_folder(
    folder: Path, rewards: Mapping[str, float], batch_size: int = 32, out: Path | None = None
) -> tuple[Path, list[dict[str, Any]]]:
    """Score every picture and write a line each into a new file; returns its path and the lines.

    rewards: name -> weight in `reward`, their sum; out: None is scores.jsonl in the folder
    """
    path = out or folder / "scores.jsonl"
    if path.exists():
        raise UserError(f"{path} exists and is not replaced; choose another --out")
    if not rewards or batch_size < 1:
        raise UserError("there is nothing to score: give at least one --rewards NAME and --batch-size 1 or more")
    reward, pictures = RewardSet(rewards), read_folder(folder)
    warn(reward.check(captions(pictures)))
    lines: list[dict[str, Any]] = [{"file_name": picture.name, "prompt": picture.prompt} for picture in pictures]
    for rows in _batches(pictures, batch_size, any(map(needs_group, reward.rewards.values()))):
        batch = [pictures[row] for row in rows]
        images = load_images([picture.path for picture in batch])
        scores, total = reward(images, [p.prompt for p in batch], [p.metadata for p in batch])
        for place, row in enumerate(rows):
            lines[row] |= {name: values[place].item() for name, values in {**scores, "reward": total}.items()}
    with whole(path) as unfinished:
        unfinished.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path, lines


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
