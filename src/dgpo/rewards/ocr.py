"""Text rendering: reads the picture and compares what it reads with the text asked for.

The OCR task of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), on which DGPO (arXiv 2510.08425) trains too:

    score = max(0, 1 - edit_distance(read, target) / len(target))

read is all fragments of text found in the picture, joined in reading order. Before they are compared, both sides are
brought to Unicode's compatibility form (NFKC: a full-width ! is a !), curly quotes and dashes are made straight, white
space is dropped and letters are lower-cased. Deviations from the authors' code:
- PP-OCRv4 runs in ONNX runtime on the CPU (RapidOCR, its weights lie inside the package), theirs in PaddleOCR.
- Text beyond the target costs. Theirs is free as soon as the target stands somewhere: `OCR(free_extra_text=True)`.
- All quoted parts of a prompt are the target, joined by a space; theirs is the first.
- A picture on which the reader fails stops the run; theirs scores 0.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.preprocess import to_bytes

KEYS = ("text", "target")  # of the metadata, in this order
_DOUBLE = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»')
_SINGLE = re.compile(r"(?<!\w)'(.+?)'(?!\w)|(?<!\w)‘(.+?)’(?!\w)")  # an apostrophe within a word is no quote
_STRAIGHT = str.maketrans("‘’‚“”„‐‑–—−⁄", "'''\"\"\"-----/")


class OCR:
    """images (B, 3, H, W) in [0, 1] -> {"ocr": (B,) in [0, 1], "exact": 1 where read and target are equal, else 0}.

    min_confidence: fragments that the reader trusts less are dropped. sides: the shorter side of a picture is brought
    into this range of pixels before it is read; smaller letters become readable, and take more time. threads: of ONNX
    runtime, torch's number if None.
    """

    def __init__(
        self,
        *,
        free_extra_text: bool = False,
        min_confidence: float = 0.5,
        sides: tuple[int, int] = (192, 1024),
        threads: int | None = None,
    ) -> None:
        self.free_extra_text, self.sides = free_extra_text, sides
        self._distance = _module("rapidfuzz.distance").Levenshtein.distance
        threads = threads or torch.get_num_threads()
        # limit "max" leaves pictures below 960 pixels at their size, where "min" would enlarge all to 736.
        self._read = _module("rapidocr_onnxruntime").RapidOCR(
            det_limit_type="max", text_score=min_confidence, intra_op_num_threads=threads, inter_op_num_threads=1
        )

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> dict[str, list[float]]:
        wanted = [plain(target(prompt, row)) for prompt, row in zip(prompts, metadata)]
        found = [plain(text) for text in self.read(images)]
        return {
            "ocr": [self._score(read, text) for read, text in zip(found, wanted)],
            "exact": [float(read == text) for read, text in zip(found, wanted)],
        }

    def read(self, images: Tensor) -> list[str]:
        """The text in each of (B, 3, H, W) pictures, fragments in reading order with spaces between, "" if none."""
        shorter = min(max(min(images.shape[2:]), self.sides[0]), self.sides[1])
        factor = shorter / min(images.shape[2:])
        if factor != 1:
            size = [round(side * factor) for side in images.shape[2:]]
            images = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
        found = [self._read(picture)[0] or [] for picture in to_bytes(images.flip(1)).numpy()]  # the reader takes BGR
        return [" ".join(in_reading_order(fragments)) for fragments in found]

    def _score(self, read: str, text: str) -> float:
        if self.free_extra_text and text in read:
            return 1.0
        return max(0.0, 1 - self._distance(read, text) / len(text))


def target(prompt: str, metadata: dict[str, Any]) -> str:
    """The text that a picture should show: metadata `text` or `target`, else what stands in quotes in the prompt.

    Double quotes decide; single ones count where there are none. Several quoted parts are joined by a space.
    """
    key = next((key for key in KEYS if key in metadata), None)
    quoted = _DOUBLE.findall(prompt) or _SINGLE.findall(prompt)
    text = metadata[key] if key else " ".join("".join(groups) for groups in quoted)
    if not (isinstance(text, str) and plain(text)):
        given = f"its metadata {key!r} is {text!r}" if key else "nothing in it stands in quotes"
        raise UserError(
            f"the reward ocr does not know which text to read for the prompt {prompt!r}: {given}. Put the text in "
            f"quotes in the prompt, or into the metadata as {KEYS[0]!r}"
        )
    return text


def plain(text: str) -> str:
    """What of a text counts: NFKC, straight quotes and dashes, no white space, lower case."""
    return "".join(unicodedata.normalize("NFKC", text.translate(_STRAIGHT)).translate(_STRAIGHT).split()).lower()


def in_reading_order(fragments: list[Any]) -> list[str]:
    """Texts line by line from the top, each line from the left. fragments: [four corners (x, y), text, confidence].

    A fragment belongs to a line if the heights of their middles differ by less than half of the lower one's height.
    """
    boxes = []
    for corners, text, _ in fragments:
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        boxes.append(((min(ys) + max(ys)) / 2, max(ys) - min(ys), min(xs), text))
    lines: list[list[tuple[float, float, float, str]]] = []
    for box in sorted(boxes, key=lambda box: box[0]):
        first = lines[-1][0] if lines else None
        if first and abs(box[0] - first[0]) < min(box[1], first[1]) / 2:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box[3] for line in lines for box in sorted(line, key=lambda box: box[2])]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = (
            " This machine has no libGL, which opencv-python needs: put opencv-python-headless in its place"
            if "libGL" in str(error)
            else " RapidOCR is published for Python below 3.13"
        )
        raise UserError(f"the reward ocr cannot import {name} ({error}): pip install 'dgpo[ocr]'.{hint}") from error
