"""A folder of pictures with captions, in the form of Hugging Face's `imagefolder`.

FOLDER/metadata.jsonl or captions.jsonl    one line a picture: file_name, prompt (or else text), metadata
FOLDER/NAME.png, FOLDER/NAME.txt ...       without such a file, a caption beside every picture

`write_folder` writes the captions beside the pictures, for programs that train LoRAs read these; the list too where the
prompts have metadata, which a caption has no place for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.errors import UserError
from dgpo.utils.files import json_object, read_text
from dgpo.utils.pictures import image_size, read_image, to_pil

LISTS = ("metadata.jsonl", "captions.jsonl")
FORMATS = ("PNG", "JPEG", "WEBP")
UNREADABLE = "cannot read the picture"
_FORM = 'an object such as {"file_name": "1.png", "prompt": "a cat"}'
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Picture(NamedTuple):
    """A picture and what it shall show."""

    name: str  # of the file, from the folder
    path: Path
    prompt: str
    metadata: dict[str, Any]
    size: tuple[int, int]  # width, height


def find_pictures(folder: Path) -> list[Path]:
    """The picture files of a folder by name, at least one; not those of folders in it."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"there is no picture in {str(folder)!r}; give a folder with {', '.join(SUFFIXES)} files")
    return found


def read_folder(folder: Path) -> list[Picture]:
    """All pictures that the list names, or that lie in the folder. Only their heads are read."""
    listed = [folder / name for name in LISTS if (folder / name).is_file()]
    rows = _listed(listed[0]) if listed else [_beside(path) for path in find_pictures(folder)]
    prompts = load_prompts([row for _, row in rows])
    found = zip((folder / name for name, _ in rows), rows, prompts.prompts, prompts.metadata)
    return [Picture(name, path, prompt, metadata, picture_size(path)) for path, (name, _), prompt, metadata in found]


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height), from the file's head."""
    return image_size(path, FORMATS, UNREADABLE)


def load_images(paths: Sequence[Path]) -> Tensor:
    """(B, 3, H, W) fp32 in [0, 1] of pictures of one size."""
    return torch.stack([read_image(path, FORMATS, UNREADABLE) for path in paths])


def write_folder(folder: Path, images: Tensor, prompts: PromptSet) -> None:
    """Write a new folder: 0-2.png, which shows the third image of the first prompt, and its caption 0-2.txt.

    images: (len(prompts), k, 3, H, W) float in [0, 1]
    """
    folder.mkdir(parents=True)
    first, second = (len(str(count - 1)) for count in images.shape[:2])
    rows = []
    for p, (own, prompt, metadata) in enumerate(zip(images, prompts.prompts, prompts.metadata)):
        for i, image in enumerate(own):
            path = folder / f"{p:0{first}}-{i:0{second}}.png"
            to_pil(image).save(path)
            path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
            rows.append({**metadata, "file_name": path.name, "prompt": prompt})
    if any(prompts.metadata):
        lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        (folder / LISTS[0]).write_text(lines, encoding="utf-8")


def _listed(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {str(path)!r}"
        row = json_object(line, where, _FORM)
        if "file_name" not in row:
            raise UserError(f"{where} names no picture; it must be {_FORM}")
        name = str(row.pop("file_name"))
        rows.append((name, row if "prompt" in row or "text" not in row else {"prompt": row.pop("text"), **row}))
    return rows


def _beside(path: Path) -> tuple[str, dict[str, Any]]:
    caption = path.with_suffix(".txt")
    if not caption.is_file():
        raise UserError(
            f"{str(path)!r} has no caption: put it into {caption.name} beside it, or list all pictures in {LISTS[0]}, "
            'a line {"file_name": ..., "prompt": ...} each'
        )
    return path.name, {"prompt": read_text(caption).strip()}


def captions(pictures: Sequence[Picture]) -> PromptSet:
    """Take the pictures' prompts, with their names for places."""
    return PromptSet([p.prompt for p in pictures], [p.metadata for p in pictures], [p.name for p in pictures])
