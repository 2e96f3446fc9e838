"""The README's pictures of a run: the same prompts and the same noise, drawn with the weights of its checkpoints.

    python benchmarks/picture.py grid runs/demo assets/before_after.png
    python benchmarks/picture.py grid runs/words assets/words.png
    python benchmarks/picture.py animation runs/demo assets/training.webp

The prompts are the first of the run's first evaluation list, the noise is that of its evaluations (`--images` of each
prompt), and the weights are the averaged ones. A tick or a cross is a score that is 1 or 0: `shapes_strict`, or
`ocr/exact` for words. Nothing is chosen by its looks. The animation needs a run that kept its checkpoints:
`dgpo train tiny --checkpoint-every 5 --keep-checkpoints 20`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgpo.config import Config
from dgpo.core import seeds
from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.models.configured import load_configured
from dgpo.models.text_cache import CondCache
from dgpo.report.grids import to_pil
from dgpo.report.marks import Marking, marking
from dgpo.rewards.combine import RewardSet
from dgpo.run import checkpoint
from dgpo.run import folder as runfolder
from dgpo.training.draw import Drawn, draw, for_evaluation

COLOURS = {"good": "#0a6b2c", "bad": "#bf2b2b", "none": "#55544f"}
INK, PAPER = "#141413", "white"
TILE, GAP, MARK, TEXT, MARGIN = 128, 10, 46, 34, 24
FRAME_MS, LAST_FRAME_MS = 900, 2600


class Drawings(NamedTuple):
    """What the weights of one checkpoint draw."""

    iteration: int
    images: Tensor  # (prompts * k, 3, H, W), a prompt's images beside each other
    scores: dict[str, list[float]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("grid", "animation"))
    options.add_argument("run", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--prompts", type=int, default=4, help="The first ones of the list.")
    options.add_argument("--images", type=int, default=8, help="Pictures of each prompt.")
    given = options.parse_args()
    config = runfolder.stored_config(given.run)
    checkpoints = [path for path in checkpoint.list_checkpoints(given.run) if checkpoint.iteration_of(path)]
    grid = given.what == "grid"
    if not checkpoints:
        raise SystemExit(f"{given.run} holds no checkpoint of trained weights")
    prompts = load_prompts(next(iter(config.eval_prompts.values()))).subset(range(given.prompts if grid else 1))
    drawings = drawn(config, checkpoints[-1:] if grid else checkpoints, prompts, given.images)
    marked_by = marking([each.scores for each in drawings], {"rewards": config.rewards})
    if marked_by is None or not marked_by.right_or_wrong:
        raise SystemExit(f"no score of {', '.join(config.rewards)} says right or wrong")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if grid:
        before_after(drawings, prompts.prompts, marked_by).save(given.out, optimize=True)
    else:
        first, *later = animation(drawings, prompts.prompts[0], marked_by)
        stay = [FRAME_MS] * len(later) + [LAST_FRAME_MS]
        first.save(given.out, save_all=True, append_images=later, duration=stay, loop=0, quality=85, method=6)
    for each in drawings:
        print(f"iteration {each.iteration}: {_right(each, marked_by)} ({marked_by.score})")


def drawn(config: Config, checkpoints: Sequence[Path], prompts: PromptSet, k: int) -> list[Drawings]:
    """k images of each prompt from the noise of evaluations: by the pretrained weights, then by each checkpoint."""
    model, reward = load_configured(config, ("ref", "ema")), RewardSet(config.rewards, tags=config.reward_tags)
    rows = prompts.subset(prompt for prompt in range(len(prompts)) for _ in range(k))
    cond, found = CondCache(model)(rows.prompts), []
    for path in (None, *checkpoints):
        if path is not None:
            model.weights.load("ema", checkpoint.load(path)[0]["ema"])
        streams = [seeds.generator(config.seed, "eval", row // k, row % k) for row in range(len(rows))]
        weights = "ref" if path is None else "ema"
        images = Drawn.cat([*draw(model, cond, streams, for_evaluation(config.sampling), weights)]).images
        scores, _ = reward(images, rows.prompts, rows.metadata, torch.arange(len(rows)) // k)
        iteration = 0 if path is None else checkpoint.iteration_of(path)
        found.append(Drawings(iteration, images, {n: s.tolist() for n, s in scores.items()}))
    return found


def before_after(drawings: Sequence[Drawings], prompts: Sequence[str], marked_by: Marking) -> Image.Image:
    """A row of pictures for each prompt, before on the left and after on the right."""
    k = len(drawings[0].images) // len(prompts)
    block, row = k * (TILE + GAP) - GAP, TEXT + 12 + TILE + MARK
    head, between = 2 * TEXT, 5 * GAP
    canvas = Image.new("RGB", (2 * MARGIN + 2 * block + between, MARGIN + head + len(prompts) * row), PAPER)
    for drawing, left, when in zip(drawings, (MARGIN, MARGIN + block + between), ("before", "after")):
        iterations = f" {drawing.iteration} iterations" if drawing.iteration else " training"
        _write(canvas, left, MARGIN, f"{when}{iterations}: {_right(drawing, marked_by)}", 42, bold=True)
        for number, prompt in enumerate(prompts):
            top = MARGIN + head + number * row
            _write(canvas, left, top, prompt, TEXT)
            _tiles(canvas, (left, top + TEXT + 9), drawing, range(number * k, number * k + k), k, marked_by)
    return canvas


def animation(drawings: Sequence[Drawings], prompt: str, marked_by: Marking, columns: int = 4) -> list[Image.Image]:
    """One frame for each checkpoint."""
    k = len(drawings[0].images)
    size = (2 * MARGIN + columns * (TILE + GAP) - GAP, MARGIN + 94 + -(-k // columns) * (TILE + MARK))
    frames = []
    for drawing in drawings:
        frame = Image.new("RGB", size, PAPER)
        _write(frame, MARGIN, MARGIN - 6, prompt, 34, bold=True)
        _write(frame, MARGIN, MARGIN + 38, f"iteration {drawing.iteration}: {_right(drawing, marked_by)}", 28)
        _tiles(frame, (MARGIN, MARGIN + 86), drawing, range(k), columns, marked_by)
        frames.append(frame)
    return frames


def _tiles(
    canvas: Image.Image, corner: tuple[int, int], drawing: Drawings, places: range, columns: int, marked_by: Marking
) -> None:
    """Pictures in rows of `columns`, each with its tick or cross below."""
    for i, place in enumerate(places):
        left, top = corner[0] + i % columns * (TILE + GAP), corner[1] + i // columns * (TILE + MARK)
        canvas.paste(to_pil(drawing.images[place]).resize((TILE, TILE), Image.Resampling.NEAREST), (left, top))
        mark = marked_by.mark(drawing.scores[marked_by.score][place])
        _write(canvas, left + TILE // 2, top + TILE + 1, mark.text, 36, COLOURS[mark.tone], bold=True, anchor="ma")


def _right(drawing: Drawings, marked_by: Marking) -> str:
    right = drawing.scores[marked_by.score]
    return f"{sum(right):.0f} of {len(right)} right"


def _write(
    canvas: Image.Image, x: int, y: int, text: str, size: int, colour: str = INK, bold: bool = False, anchor: str = "la"
) -> None:
    font = ImageFont.truetype(findfont(f"DejaVu Sans:{'bold' if bold else 'regular'}"), size)
    ImageDraw.Draw(canvas).text((x, y), text, colour, font, anchor=anchor)


if __name__ == "__main__":
    main()
