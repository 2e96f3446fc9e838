"""The groups of pictures that people are shown.

    RUN/teach/000012/
        group.json              prompt, which pictures, who drew them, what other rewards say of them
        0.png ...               the pictures
        latents.safetensors     x0 (G, *latent), what the model learns from; a comparison has none

A group takes its name once it is whole and on the disk, and is never changed or deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgpo.errors import UserError
from dgpo.utils.files import json_object, read_text, save_tensors, sync_tree

if TYPE_CHECKING:
    from torch import Tensor

FOLDER, ABOUT, LATENTS = "teach", "group.json", "latents.safetensors"
LATENT_SPACE = f"{FOLDER}/latent_space.json"
"""Of the run: which model's latents these are."""
TRAIN, BLIND = "train", "blind"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The pictures of one prompt, numbered from 0."""

    number: int
    kind: Literal["train", "blind"]
    """train: to learn from; blind: one picture of the base model and one of the trained one, from the same noise."""
    prompt: str
    metadata: dict[str, Any] = field(default_factory=dict)
    iteration: int
    """Finished iterations of the weights that drew it."""
    images: tuple[str, ...]
    """SHA-256 of each PNG file."""
    scores: dict[str, list[float]] = field(default_factory=dict)
    """What other rewards say: name -> one score for each picture."""
    now: int | None = None
    """Of a comparison, which picture is the trained model's. Nobody who answers is told."""

    @property
    def size(self) -> int:
        """How many pictures."""
        return len(self.images)


class Groups:
    """The groups of a run. New ones are found with every look."""

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self.damaged: dict[int, str] = {}  # number -> why the group cannot be read; the run goes on without it
        self._known: dict[int, Group] = {}
        self._seen = -1

    def all(self) -> dict[int, Group]:
        """number -> group, in the order in which they were drawn. A later look does not change what was returned."""
        modified = _modified(self.folder)
        if modified != self._seen or time.time_ns() - modified < 1e9:  # clocks of file systems tick slowly
            new = [number for number in _numbers(self.folder) if number not in self._known]
            found = {number: group for number in new if (group := self._read(number)) is not None}
            if found:
                self._known = self._known | found
            self._seen = modified
        return self._known

    def _read(self, number: int) -> Group | None:
        try:
            group = _read(self._place(number), number)
        except UserError as error:
            self.damaged[number] = str(error)
            return None
        self.damaged.pop(number, None)
        return group

    def last_number(self) -> int:
        """The largest number of a folder, whether its group can be read or not; -1 where there is none."""
        return max(_numbers(self.folder), default=-1)

    def tidy(self) -> None:
        """Remove what a killed trainer has left unfinished. Only the one that draws may call this."""
        for partial in self.folder.glob(".*.part"):
            shutil.rmtree(partial, ignore_errors=True)

    def add(self, group: Group, pictures: Sequence[bytes], x0: Tensor | None) -> None:
        """Write a group, whole or not at all. pictures: PNG files."""
        place = self._place(group.number)
        partial = place.with_name(f".{place.name}.{os.getpid()}.part")
        try:
            partial.mkdir(parents=True)
            for number, picture in enumerate(pictures):
                (partial / f"{number}.png").write_bytes(picture)
            if x0 is not None:
                save_tensors({"x0": x0.detach().float().cpu().contiguous()}, partial / LATENTS)
            (partial / ABOUT).write_text(json.dumps(asdict(group), ensure_ascii=False) + "\n", encoding="utf-8")
            sync_tree(partial)
            partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def picture(self, number: int, picture: int) -> Path | None:
        """The file of a picture; None where there is none."""
        group = self.all().get(number)
        path = self._place(number) / f"{picture}.png"
        return path if group and 0 <= picture < group.size and path.is_file() else None

    def is_whole(self, number: int) -> bool:
        """Whether every picture of a group is still there."""
        group = self.all().get(number)
        return group is not None and all(self.picture(number, picture) for picture in range(group.size))

    def x0(self, number: int) -> Tensor:
        """(G, *latent) fp32, CPU."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._place(number) / LATENTS
        try:
            return load_file(path)["x0"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"the latents {path} of a group that was answered cannot be read ({error}); put them back, or move "
                f"the group's folder away: the run then learns from the other groups"
            ) from error

    def has_latents(self, number: int) -> bool:
        """Whether a group can be learned from."""
        return (self._place(number) / LATENTS).is_file()

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:06d}"


def sha256(picture: bytes) -> str:
    """What names a picture in the answers."""
    return hashlib.sha256(picture).hexdigest()


def _numbers(folder: Path) -> Iterator[int]:
    names = os.listdir(folder) if folder.is_dir() else []
    yield from sorted(int(name) for name in names if len(name) == 6 and name.isdecimal())


def _modified(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1


def _read(place: Path, number: int) -> Group:
    told: Mapping[str, Any] = json_object(read_text(place / ABOUT), str(place / ABOUT))
    try:
        group = Group(**{**told, "images": tuple(told["images"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"{place / ABOUT} is no group of this version of dgpo: {error}") from error
    if group.number != number:
        raise UserError(f"{place / ABOUT} says that it is group {group.number}; its folder's name must be the same")
    return group
