"""The sample pictures of a run: fixed prompts and fixed noise, written at each evaluation and read by the report.

    samples/iteration-000020.png      all pictures, those of a prompt in one row, for a quick look
    samples/iteration-000020/003.png  picture 3, as drawn; it belongs to prompts[3 // k]
    samples/iteration-000020.json     {"prompts": [...], "images_per_prompt": k, "scores": {"reward": [...], ...}}

Each score has one number for each picture, null where there is none. The grid is written last, by renaming, so an
iteration is complete once its grid exists. Earlier versions kept one picture of a prompt and no scores, and wrote
samples/prompts.json with the prompts of all iterations instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgpo.errors import UserError
from dgpo.utils.files import whole
from dgpo.utils.pictures import to_pil

COMFORTABLE, MAX_COLUMNS = 160, 8
GREY = "#55544f"


Scores = dict[str, list[float]]  # name -> one for each picture, NaN where there is none


class Samples(NamedTuple):
    """What `read_samples` found: the same pictures of every iteration, k of each prompt beside each other."""

    prompts: list[str]  # one per picture
    iterations: dict[int, list[Path]]  # ascending
    images_per_prompt: int
    scores: dict[int, Scores]  # empty for an iteration of an earlier version


class _Index(NamedTuple):
    """What the pictures of one iteration are."""

    prompts: list[str]
    images_per_prompt: int
    scores: Scores


def sample_grid(
    images: Tensor,
    columns: int,
    scale: int | None = None,
    gap: int = 4,
    labels: Sequence[str] = (),
    headings: Sequence[str] = (),
) -> Image.Image:
    """Images in rows of `columns` on white; tiny ones enlarged by whole pixels (`scale`, None chooses).

    images: (n, 3, H, W) float in [0, 1]; labels: written to the left of each row, where there are any; headings: each
    written above its share of the rows, which have equal ones, in as many lines as its text takes
    """
    n, _, height, width = images.shape
    scale = scale or max(1, COMFORTABLE // max(height, width))
    columns, rows = min(columns, n), math.ceil(n / columns)
    step_x, step_y = width * scale + gap, height * scale + gap
    size = max(12, width * scale // 12)
    font = ImageFont.load_default(size)
    left = round(max((font.getlength(label) for label in labels), default=-gap)) + 2 * gap
    line, texts = round(1.4 * size), [_wrapped(text, font, left + columns * step_x - 2 * gap) for text in headings]
    share = rows // len(texts) if texts else rows
    tops, below = [], 0
    for row in range(rows):
        below += len(texts[row // share]) * line if texts and row % share == 0 else 0
        tops.append(gap + below + row * step_y)
    canvas = Image.new("RGB", (left + columns * step_x, below + rows * step_y + gap), "white")
    for i, image in enumerate(images):
        tile = to_pil(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(tile, (left + i % columns * step_x, tops[i // columns]))
    pen = ImageDraw.Draw(canvas)
    for row, label in enumerate(labels):
        pen.text((gap, tops[row] + height * scale // 2), label, GREY, font, anchor="lm")
    for heading, lines in enumerate(texts):
        for number, text in enumerate(reversed(lines), start=1):
            pen.text((gap, tops[heading * share] - number * line + line // 2), text, GREY, font, anchor="lm")
    return canvas


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """The words of a text in lines of at most that width; a word that is longer has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def write_samples(
    run_dir: Path, iteration: int, images: Tensor, prompts: list[str], scores: Mapping[str, Tensor] | None = None
) -> Path:
    """Write one evaluation's pictures under `run_dir/samples` and return the grid's path.

    images: (n, 3, H, W) float in [0, 1], n a multiple of len(prompts), a prompt's images beside each other
    scores: name -> (n,), NaN where an image has none
    """
    if not prompts or len(images) % len(prompts):
        raise ValueError(f"{len(images)} images cannot be shared evenly by {len(prompts)} prompts")
    per_prompt = len(images) // len(prompts)
    columns = per_prompt if per_prompt > 1 else min(MAX_COLUMNS, math.ceil(math.sqrt(len(images))))
    tiles = run_dir / "samples" / f"iteration-{iteration:06d}"
    tiles.mkdir(parents=True, exist_ok=True)
    told = {name: [None if math.isnan(v) else v for v in each.tolist()] for name, each in (scores or {}).items()}
    index = {"prompts": prompts, "images_per_prompt": per_prompt, "scores": told}
    tiles.with_suffix(".json").write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")
    for i, image in enumerate(images):
        to_pil(image).save(tiles / f"{i:03d}.png")
    grid = tiles.with_suffix(".png")
    with whole(grid) as unfinished:
        sample_grid(images, columns).save(unfinished, "PNG")
    return grid


def read_samples(run_dir: Path) -> Samples | None:
    """The pictures that every complete iteration has; None where there are none.

    Iterations differ in how many they have where a run went on with another `num_samples`. All begin with the first
    images of the first prompts.
    """
    grids = {int(grid.stem.removeprefix("iteration-")): grid for grid in _grids(run_dir / "samples")}
    found = {i: (grid, index) for i, grid in grids.items() if (index := _index(grid)) and _complete(grid, index)}
    if not found:
        return None
    p = min(len(index.prompts) for _, index in found.values())
    k = min(index.images_per_prompt for _, index in found.values())
    rows = {i: _rows(index, p, k) for i, (_, index) in found.items()}
    prompts = next(iter(found.values()))[1].prompts[:p]
    return Samples(
        [prompt for prompt in prompts for _ in range(k)],
        {i: [_tile(grid, row) for row in rows[i]] for i, (grid, _) in found.items()},
        k,
        {i: {n: [s[row] for row in rows[i]] for n, s in index.scores.items()} for i, (_, index) in found.items()},
    )


def _grids(folder: Path) -> list[Path]:
    return sorted(folder.glob("iteration-[0-9]*.png"))


def _tile(grid: Path, row: int) -> Path:
    return grid.with_suffix("") / f"{row:03d}.png"


def _rows(index: _Index, p: int, k: int) -> list[int]:
    """Where the first k pictures of the first p prompts are."""
    return [prompt * index.images_per_prompt + image for prompt in range(p) for image in range(k)]


def _complete(grid: Path, index: _Index) -> bool:
    return all(_tile(grid, row).exists() for row in range(len(index.prompts) * index.images_per_prompt))


def _index(grid: Path) -> _Index | None:
    """What an iteration's pictures are; None where no file tells."""
    files = (grid.with_suffix(".json"), grid.with_name("prompts.json"))
    path = next((path for path in files if path.exists()), None)
    if path is None:
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        scores = index.get("scores", {}).items()
        numbers = {name: [math.nan if v is None else float(v) for v in each] for name, each in scores}
        return _Index(index["prompts"], index["images_per_prompt"], numbers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what write_samples writes: {error!r}") from error
