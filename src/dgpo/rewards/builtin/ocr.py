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
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dgpo.errors import UserError
from dgpo.utils.devices import own_threads
from dgpo.utils.pictures import to_rows

KEYS = ("text", "target")  # of the metadata, in this order
_DOUBLE = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»')
_SINGLE = re.compile(r"(?<!\w)'(.+?)'(?!\w)|(?<!\w)‘(.+?)’(?!\w)")  # an apostrophe within a word is no quote
_OPENING = re.compile(r"(?<!\w)'\w")  # of a single quote within a part, which another one closed
_INCH = "\0"
_STRAIGHT = str.maketrans("‘’‚“”„‐‑–—−⁄", "'''\"\"\"-----/")


class OCR:
    """images (B, 3, H, W) in [0, 1] -> {"ocr": (B,) in [0, 1], "exact": 1 where read and target are equal, else 0}.

    min_confidence: fragments that the reader trusts less are dropped. sides: the shorter side of a picture is brought
    into this range of pixels before it is read; smaller letters become readable, and take more time. threads: of ONNX
    runtime; None: torch's number, or this process's share of the cores under torchrun, which gives torch one.
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
        threads = threads or own_threads()
        # limit "max" leaves pictures below 960 pixels at their size, where "min" would enlarge all to 736.
        self._read = _module("rapidocr_onnxruntime").RapidOCR(
            det_limit_type="max", text_score=min_confidence, intra_op_num_threads=threads, inter_op_num_threads=1
        )

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> dict[str, list[float]]:
        wanted = [plain(target(prompt, row)) for prompt, row in zip(prompts, metadata)]
        texts = [plain(text) for text in self.read(images)]
        return {
            "ocr": [self._score(read, text) for read, text in zip(texts, wanted)],
            "exact": [float(read == text) for read, text in zip(texts, wanted)],
        }

    def check_row(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """Refuse a prompt without a text that can be read; doubt one that can be in part, and odd quotes."""
        text = target(prompt, metadata)
        letters = plain(text)
        unknown = [letter for letter in letters if letter not in self._readable]
        told = f"the reader does not know {''.join(dict.fromkeys(unknown))!r}"
        best = 1 - len(unknown) / len(letters)
        if best < 0.5:
            raise UserError(
                f"the reward ocr cannot read {text!r}, which the prompt {prompt!r} asks for: {told}, so that the best "
                f"picture scores {best:.2g}. Its dictionary is Chinese and Latin with few accents; give another text, "
                "or a reward with another reader"
            )
        if unknown:
            return f"{told}, so that the best picture of {text!r} scores {best:.2g}"
        return None if _key(metadata) else _odd_quotes(prompt, text)

    @cached_property
    def _readable(self) -> frozenset[str]:
        """All that can stand in what was read: the reader's dictionary, whose first entry stands for nothing."""
        return frozenset("".join(map(plain, self._read.text_rec.postprocess_op.character[1:])))

    def read(self, images: Tensor) -> list[str]:
        """The text in each of (B, 3, H, W) pictures, fragments in reading order with spaces between, "" if none."""
        shorter = min(max(min(images.shape[2:]), self.sides[0]), self.sides[1])
        factor = shorter / min(images.shape[2:])
        if factor != 1:
            size = [round(side * factor) for side in images.shape[2:]]
            images = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
        boxes = [self._read(picture)[0] or [] for picture in to_rows(images.flip(1)).numpy()]  # the reader takes BGR
        return [" ".join(in_reading_order(fragments)) for fragments in boxes]

    def _score(self, read: str, text: str) -> float:
        if self.free_extra_text and text in read:
            return 1.0
        return max(0.0, 1 - self._distance(read, text) / len(text))


def target(prompt: str, metadata: Mapping[str, Any]) -> str:
    """The text that a picture should show: metadata `text` or `target`, else what stands in quotes in the prompt.

    Double quotes decide; single ones count where there are none. Several quoted parts are joined by a space. A straight
    double quote behind a digit is an inch mark, unless it closes a quoted part.
    """
    key = _key(metadata)
    marks = _without_inches(prompt)
    quoted = _DOUBLE.findall(marks) or _SINGLE.findall(marks)
    text = metadata[key] if key else " ".join("".join(groups) for groups in quoted).replace(_INCH, '"')
    if not (isinstance(text, str) and plain(text)):
        given = f"its metadata {key!r} is {text!r}" if key else "nothing in it stands in quotes"
        raise UserError(
            f"the reward ocr does not know which text to read for the prompt {prompt!r}: {given}. Put the text in "
            f"quotes in the prompt, or into the metadata as {KEYS[0]!r}"
        )
    return text


def _key(metadata: Mapping[str, Any]) -> str | None:
    """The key of the metadata that holds the text, if one does."""
    return next((key for key in KEYS if key in metadata), None)


def _without_inches(prompt: str) -> str:
    """The same with _INCH in the place of every straight double quote that opens nothing, being behind a digit."""
    letters, is_open = list(prompt), False
    for place, letter in enumerate(prompt):
        if letter == '"' and not is_open and prompt[max(0, place - 1) : place].isdigit():
            letters[place] = _INCH
        elif letter == '"':
            is_open = not is_open
    return "".join(letters)


def _odd_quotes(prompt: str, text: str) -> str | None:
    """The doubt about quotes of a prompt, and what was made of them."""
    marks = _without_inches(prompt)
    single = not _DOUBLE.findall(marks)
    parts = ["".join(groups) for groups in (_SINGLE if single else _DOUBLE).findall(marks)]
    if _INCH in marks or marks.count('"') % 2 or any(part != part.strip() or _OPENING.search(part) for part in parts):
        return f"the quotes of {prompt!r} are doubtful; the text is taken to be {text!r}. Metadata {KEYS[0]!r} decides"
    return None


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
