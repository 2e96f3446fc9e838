"""How small and how hard to read text may be before the reward `ocr` no longer reads it.

    python benchmarks/ocr_accuracy.py

Renders words in five fonts that lie inside matplotlib, in the middle half of square pictures, and scores what the
reward reads against what was written: by height of a capital letter and size of picture, then by degradation. Counts
pictures without text in which something is read. Writes benchmarks/results/ocr_accuracy.json. Times are CPU
milliseconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgpo.core.seeds import generator
from dgpo.rewards.builtin.ocr import OCR
from dgpo.run import folder as runfolder

RESULTS = Path(__file__).parent / "results"
FONT_FOLDER = Path(get_data_path()) / "fonts/ttf"
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
WORDS = ("STOP", "Open", "Hello", "Coffee", "EXIT", "sale", "Music", "2049", "Welcome", "bread", "Dr. Fox", "7:30 PM")
COLOURS = (("black", "white"), ("white", "navy"), ("yellow", "darkgreen"), ("red", "white"), ("#555", "#ccc"))
SIZES = {
    64: (5, 6, 7, 8, 10, 12, 16),
    128: (5, 6, 7, 8, 12, 24),
    256: (6, 7, 8, 12, 24, 48),
    512: (7, 8, 12, 24, 48, 96),
    1024: (12, 24),
}
ENLARGED = {64: ((64, 192), (5, 6, 7, 8)), 256: ((192, 512), (6, 7, 8))}  # size of picture: shorter sides, heights
CAPITAL = 0.72  # height of a capital letter as a share of the font's size, about
HARD = 128, 14  # size and capital height for the table of degradations


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=60, help="pictures of each kind")
    count = options.parse_args().count
    torch.set_num_threads(1)
    reward = OCR(threads=1)
    found = {
        "by_size": {f"{s}x{s}": {f"{h} px": score(reward, s, h, count) for h in hs} for s, hs in SIZES.items()},
        "enlarged": {f"{s}x{s} to {to}": enlarged(s, to, hs, count) for s, (tos, hs) in ENLARGED.items() for to in tos},
        "degraded": {name: score(reward, *HARD, count, **how) for name, how in DEGRADED.items()},
        "false_text": false_text(reward, count),
    }
    RESULTS.mkdir(exist_ok=True)
    record = {"environment": runfolder.conditions(), "pictures_of_each_kind": count, "fonts": FONTS, **found}
    (RESULTS / "ocr_accuracy.json").write_text(json.dumps(record, indent=1) + "\n")


DEGRADED = {
    "none": {},
    "noise 0.1": {"noise": 0.1},
    "noise 0.2": {"noise": 0.2},
    "noise 0.3": {"noise": 0.3},
    "turned 10 degrees": {"turn": 10.0},
    "turned 30 degrees": {"turn": 30.0},
    "turned 90 degrees": {"turn": 90.0},
    "upside down": {"turn": 180.0},
    "on a busy ground": {"busy": True},
}


def score(reward: OCR, size: int, height: int, count: int, **how) -> dict[str, float]:
    """Mean score, share read exactly, and CPU milliseconds an image."""
    rng = generator(0, "ocr accuracy", size, height)
    words, images = zip(*(picture(size, height, rng, **how) for _ in range(count)))
    start = time.process_time()
    scores = reward(torch.stack(images), list(words), [{"text": word} for word in words])
    milliseconds = (time.process_time() - start) * 1000 / count
    mean = {name: round(sum(values) / count, 3) for name, values in scores.items()}
    print(size, height, how, mean, f"{milliseconds:.0f} ms", flush=True)
    return {**mean, "ms": round(milliseconds, 1)}


def enlarged(size: int, to: int, heights: tuple[int, ...], count: int) -> dict[str, dict[str, float]]:
    """The same, where pictures with a shorter side below `to` are enlarged to it."""
    reward = OCR(threads=1, sides=(to, 1024))
    return {f"{height} px": score(reward, size, height, count) for height in heights}


def picture(size: int, height: int, rng, noise=0.0, turn=0.0, busy=False) -> tuple[str, Tensor]:
    """A word that fits, and its picture (3, size, size) in [0, 1]: font, colours and place are drawn."""
    font = ImageFont.truetype(str(FONT_FOLDER / f"{pick(FONTS, rng)}.ttf"), round(height / CAPITAL))
    fitting = [word for word in WORDS if font.getlength(word) <= 0.95 * size] or [min(WORDS, key=len)]
    word, (ink, paper) = pick(fitting, rng), pick(COLOURS, rng)
    ground = Image.new("RGB", (size, size), paper)
    free = max(0.0, 0.97 * size - font.getlength(word)) / 2, max(0.0, 0.5 * size - height)
    x, y = (size / 2 + (2 * torch.rand((), generator=rng).item() - 1) * min(f, size / 4) for f in free)
    ImageDraw.Draw(ground).text((x, y), word, fill=ink, font=font, anchor="mm")
    turned = ground.rotate(turn, fillcolor=paper, resample=Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(turned)).permute(2, 0, 1) / 255
    if busy:
        image = image * 0.7 + 0.3 * blobs(size, rng)
    return word, (image + noise * torch.randn(image.shape, generator=rng)).clamp(0, 1)


def blobs(size: int, rng) -> Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=rng)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[0].clamp(0, 1)


def false_text(reward: OCR, count: int) -> dict[str, float]:
    """The share of pictures without any text in which something is read."""
    rng = generator(0, "false text")
    kinds = {
        "plain": torch.rand(count, 3, 1, 1, generator=rng).expand(-1, -1, 128, 128),
        "noise": torch.rand(count, 3, 128, 128, generator=rng),
        "blobs": torch.stack([blobs(128, rng) for _ in range(count)]),
    }
    return {name: sum(bool(text) for text in reward.read(images)) / count for name, images in kinds.items()}


def pick(items, rng):
    return items[int(torch.randint(len(items), (), generator=rng))]


if __name__ == "__main__":
    main()
