"""The sample pictures of a run: fixed prompts and fixed noise, written at each evaluation and read by the report.

    samples/prompts.json              {"prompts": [...], "images_per_prompt": k, "columns": c}
    samples/iteration-000020.png      all of them in rows of `columns`, for a quick look
    samples/iteration-000020/003.png  image 3, as drawn; it belongs to prompts[3 // k]

The grid is written last, by renaming, so an iteration is complete once its grid exists.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from dgpo.errors import UserError
from dgpo.utils.files import whole
from dgpo.utils.pictures import to_pil

COMFORTABLE, MAX_COLUMNS = 160, 8


class Samples(NamedTuple):
    """What `read_samples` found. Every iteration holds one file per image, in the order of `prompts`."""

    prompts: list[str]  # one per image
    iterations: dict[int, list[Path]]  # ascending


def sample_grid(images: Tensor, columns: int, scale: int | None = None, gap: int = 4) -> Image.Image:
    """Images in rows of `columns` on white; tiny ones enlarged by whole pixels (`scale`, None chooses).

    images: (n, 3, H, W) float in [0, 1]
    """
    n, _, height, width = images.shape
    scale = scale or max(1, COMFORTABLE // max(height, width))
    columns, rows = min(columns, n), math.ceil(n / columns)
    step_x, step_y = width * scale + gap, height * scale + gap
    canvas = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    for i, image in enumerate(images):
        tile = to_pil(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(tile, (gap + i % columns * step_x, gap + i // columns * step_y))
    return canvas


def write_samples(run_dir: Path, iteration: int, images: Tensor, prompts: list[str]) -> Path:
    """Write one evaluation's pictures under `run_dir/samples` and return the grid's path.

    images: (n, 3, H, W) float in [0, 1], n a multiple of len(prompts), a prompt's images beside each other
    """
    if not prompts or len(images) % len(prompts):
        raise ValueError(f"{len(images)} images cannot be shared evenly by {len(prompts)} prompts")
    per_prompt = len(images) // len(prompts)
    columns = per_prompt if per_prompt > 1 else min(MAX_COLUMNS, math.ceil(math.sqrt(len(images))))
    folder, tiles = run_dir / "samples", run_dir / "samples" / f"iteration-{iteration:06d}"
    tiles.mkdir(parents=True, exist_ok=True)
    index = {"prompts": prompts, "images_per_prompt": per_prompt, "columns": columns}
    (folder / "prompts.json").write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")
    for i, image in enumerate(images):
        to_pil(image).save(tiles / f"{i:03d}.png")
    grid = tiles.with_suffix(".png")
    with whole(grid) as unfinished:
        sample_grid(images, columns).save(unfinished, "PNG")
    return grid


def read_samples(run_dir: Path) -> Samples | None:
    """The complete iterations of `write_samples`, None where there are none."""
    folder = run_dir / "samples"
    if not (folder / "prompts.json").exists():
        return None
    try:
        index = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
        prompts = [prompt for prompt in index["prompts"] for _ in range(index["images_per_prompt"])]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'prompts.json'} is not what write_samples writes: {error!r}") from error
    found = {int(grid.stem.removeprefix("iteration-")): grid for grid in sorted(folder.glob("iteration-[0-9]*.png"))}
    tiles = {i: [grid.with_suffix("") / f"{k:03d}.png" for k in range(len(prompts))] for i, grid in found.items()}
    complete = {i: paths for i, paths in tiles.items() if all(path.exists() for path in paths)}
    return Samples(prompts, complete) if complete else None
