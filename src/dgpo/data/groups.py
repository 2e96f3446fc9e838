"""Groups of scored images in a folder, to learn from without sampling: latents that `dgpo collect` wrote, or PNG files.

    DATASET/
        dataset.json                    the format's number, and which model's latents these are
        groups.jsonl                    one line a group: its prompt, its images or latents, their rewards or ranks
        latents-00000.safetensors ...   one tensor a group, (G, *latent)

docs/offline.md has every field. All lines are checked when the folder is opened, with the heads of the files that they
name; tensors and pictures are read one group at a time. Only JSON, safetensors and PNG are read, which run no code.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgpo import __version__
from dgpo.data.prompts import PromptSet
from dgpo.errors import UserError, did_you_mean
from dgpo.models import VelocityModel
from dgpo.utils.files import json_object, read_text, save_tensors, sync_tree
from dgpo.utils.pictures import image_size, read_image

FORMAT = 1
SHARD_BYTES = 256 << 20
_HEADER = ("format", "latent_space", "dgpo", "about")
_LINE = ("prompt", "metadata", "images", "latents", "rewards", "ranks", "scores")
_PNG, _UNREADABLE = ("PNG",), "cannot read the PNG"
_FLOATS = ("F16", "BF16", "F32")


class Group(NamedTuple):
    """The images of one prompt and what they earned."""

    prompt: str
    metadata: dict[str, Any]
    x0: Tensor  # (G, *latent) fp16, bf16 or fp32
    rewards: Tensor  # (G,) finite
    scores: dict[str, Tensor]  # name -> (G,) finite, the same names in every group


def require_new(folder: Path) -> None:
    """Refuse a place that holds something, or what a killed process left of a dataset."""
    partial = _partial(folder)
    if folder.exists():
        raise UserError(f"{folder} exists and is not replaced; choose another --out")
    if partial.exists():
        raise UserError(f"{partial} is being written, or was left by a process that was killed; in that case delete it")


def write_groups(folder: Path, groups: Iterable[Group], latent_space: Mapping[str, Any], about: Any = None) -> Path:
    """Write a dataset of latents into a new folder, whole or not at all.

    latent_space: the model's own; about: anything in JSON that says where the groups come from
    """
    require_new(folder)
    partial = _partial(folder)
    try:
        partial.mkdir(parents=True)
        with open(partial / "groups.jsonl", "w", encoding="utf-8") as lines:
            for number, shard in enumerate(_shards(groups)):
                file = f"latents-{number:05d}.safetensors"
                tensors = {str(i): g.x0.detach().cpu().contiguous() for i, g in enumerate(shard)}
                save_tensors(tensors, partial / file)
                lines.writelines(_written(group, file, str(i)) + "\n" for i, group in enumerate(shard))
        header = {"format": FORMAT, "dgpo": __version__, "latent_space": dict(latent_space), "about": about}
        (partial / "dataset.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        sync_tree(partial)
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write the dataset {folder}: {error}. Choose another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class _Line:
    """One line of groups.jsonl, checked."""

    where: str  # line 3 of 'x/groups.jsonl'
    prompt: str
    metadata: dict[str, Any]
    images: list[Path] | None  # G files, or
    latents: tuple[Path, str] | None  # a shard and the tensor's name in it
    rewards: list[float]  # G
    scores: dict[str, list[float]]  # name -> G


class GroupDataset:
    """A folder of scored groups. Latents and pictures are read when they are asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if (self.folder / "picks.jsonl").exists() and not (self.folder / "dataset.json").exists():
            raise UserError(f"{folder} is a run that people taught; write what they picked first: dgpo picks {folder}")
        self._header = _read_header(self.folder / "dataset.json")
        self._shards: dict[Path, Any] = {}
        self._lines = list(_read_lines(self.folder))
        if not self._lines:
            raise UserError(f"there is no group in {str(self.folder / 'groups.jsonl')!r}; a run needs at least one")
        self.sizes = [len(line.rewards) for line in self._lines]  # images of each group
        self.prompts = PromptSet(
            [line.prompt for line in self._lines],
            [line.metadata for line in self._lines],
            [line.where for line in self._lines],
        )
        self._require_same_scores()
        self._require_images_of_one_size()
        self._require_latents()

    def __len__(self) -> int:
        """The number of groups."""
        return len(self._lines)

    @property
    def equal_groups(self) -> int:
        """The number of groups whose images all earned the same."""
        return sum(min(line.rewards) == max(line.rewards) for line in self._lines)

    def rewards(self, group: int) -> Tensor:
        """(G,) fp32; minus the rank where ranks were given."""
        return torch.tensor(self._lines[group].rewards)

    def scores(self, group: int) -> dict[str, Tensor]:
        """name -> (G,) fp32."""
        return {name: torch.tensor(values) for name, values in self._lines[group].scores.items()}

    def x0(self, group: int, members: Sequence[int], model: VelocityModel) -> Tensor:
        """(len(members), *latent) fp32. Pictures are encoded one by one, so that x0 depends on nothing else."""
        line = self._lines[group]
        if line.images is not None:
            rows = [model.encode_images(_image(line.images[i], line.where)[None]) for i in members]
            return torch.cat(rows)
        assert line.latents is not None
        shard, name = line.latents
        x0 = self._shard(shard, line.where).get_tensor(name)[list(members)].float()
        if not x0.isfinite().all():
            raise UserError(f"{line.where}: the latents {name!r} of {shard.name} are not finite; write them anew")
        return x0.to(model.device)

    def require_fits(self, model: VelocityModel) -> None:
        """Refuse latents of another model, and pictures of another size."""
        line = next((line for line in self._lines if line.images is not None), None)
        if line is not None and line.images is not None:
            try:
                model.encode_images(_image(line.images[0], line.where)[None])
            except UserError as error:
                raise UserError(f"{line.where}: {error}") from None
        theirs, own = self._header.get("latent_space"), json.loads(json.dumps(model.latent_space))
        if theirs is None or theirs == own:
            return
        different = [name for name in dict.fromkeys([*own, *theirs]) if own.get(name) != theirs.get(name)]
        facts = ", ".join(f"{name} {theirs.get(name)} there and {own.get(name)} here" for name in different)
        raise UserError(
            f"the latents of {self.folder} belong to another model: {facts}. Train the model that drew them, with "
            "their size as sampling.resolution, or give the images as PNG files"
        )

    def _shard(self, path: Path, where: str) -> Any:
        """An open safetensors file; its tensors are read from the disk one by one."""
        if path not in self._shards:
            try:
                self._shards[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{where}: cannot read the latents {str(path)!r}: {error}") from error
        return self._shards[path]

    def _require_same_scores(self) -> None:
        first = self._lines[0]
        for line in self._lines:
            if line.scores.keys() != first.scores.keys():
                raise UserError(
                    f"{line.where} has the scores {list(line.scores)}, and line 1 has {list(first.scores)}; give every "
                    "group the same ones, or none"
                )

    def _require_images_of_one_size(self) -> None:
        """From the files' heads alone."""
        first: tuple[Path, tuple[int, int]] | None = None
        for line in self._lines:
            for path in line.images or ():
                size = image_size(path, _PNG, f"{line.where}: {_UNREADABLE}")
                first = first or (path, size)
                if size != first[1]:
                    raise UserError(
                        f"{line.where}: {path.name} has {size[0]} x {size[1]} pixels, {first[0].name} has "
                        f"{first[1][0]} x {first[1][1]}; give all images the model's size"
                    )

    def _require_latents(self) -> None:
        """From the files' heads alone: that each tensor is there, with a row for each reward."""
        for line in self._lines:
            if line.latents is None:
                continue
            if "latent_space" not in self._header:
                raise UserError(
                    f"{line.where} has latents, and {str(self.folder / 'dataset.json')!r} has no latent_space to say "
                    "which model's; give the model's own `latent_space`, or images instead"
                )
            path, name = line.latents
            try:
                part = self._shard(path, line.where).get_slice(name)
            except SafetensorError as error:
                raise UserError(f"{line.where}: {path.name} has no tensor {name!r}: {error}") from error
            shape, wanted = part.get_shape(), self._header["latent_space"].get("latent_shape")
            if shape != [len(line.rewards), *(wanted or ())] or part.get_dtype() not in _FLOATS:
                raise UserError(
                    f"{line.where}: the latents {name!r} of {path.name} are {part.get_dtype()} {shape}; "
                    f"{len(line.rewards)} rewards and latent_shape {wanted} need {' or '.join(_FLOATS)} "
                    f"{[len(line.rewards), *(wanted or ())]}"
                )


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".part")


def _shards(groups: Iterable[Group]) -> Iterator[list[Group]]:
    """As many groups as fit in SHARD_BYTES; at least one."""
    shard: list[Group] = []
    for group in groups:
        if shard and sum(g.x0.nbytes for g in shard) + group.x0.nbytes > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(group)
    if shard:
        yield shard


def _written(group: Group, file: str, name: str) -> str:
    """A line of groups.jsonl; an fp32 number is written so that it is read back exactly."""
    line = {
        "prompt": group.prompt,
        "metadata": group.metadata,
        "latents": {"file": file, "tensor": name},
        "rewards": group.rewards.tolist(),
        "scores": {name: score.tolist() for name, score in group.scores.items()},
    }
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the group of {group.prompt!r} cannot be written as JSON: {error}") from error


def _read_header(path: Path) -> dict[str, Any]:
    header = json_object(_read(path), str(path))
    _require_known(header, _HEADER, str(path))
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {header.get('format')!r}; this is dgpo {__version__}, which reads format {FORMAT}"
        )
    if not isinstance(header.get("latent_space", {}), dict):
        raise UserError(f"{path}: latent_space={header['latent_space']!r} must be an object, a model's `latent_space`")
    return header


def _read_lines(folder: Path) -> Iterator[_Line]:
    path = folder / "groups.jsonl"
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            where = f"line {number} of {str(path)!r}"
            yield _line(json_object(line, where), folder, where)


def _line(value: dict[str, Any], folder: Path, where: str) -> _Line:
    _require_known(value, _LINE, where)
    for one, other in (("images", "latents"), ("rewards", "ranks")):
        if (one in value) == (other in value):
            raise UserError(f"{where} has {'both' if one in value else 'neither'} {one} and {other}; give one of them")
    prompt, metadata = value.get("prompt"), value.get("metadata", {})
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(metadata, dict):
        raise UserError(f"{where}: prompt={prompt!r} must be a text and metadata={metadata!r} an object")
    rewards = [-rank for rank in _ranks(value["ranks"], where)] if "ranks" in value else value["rewards"]
    rewards = _numbers("rewards", rewards, None, where)
    if len(rewards) < 2:
        raise UserError(f"{where} has {len(rewards)} image; a group needs at least 2, for they are compared")
    images = latents = None
    if "images" in value:
        images = [folder / name for name in _names(value["images"], len(rewards), where)]
    else:
        latents = _place(value["latents"], folder, where)
    scores = value.get("scores", {})
    if not isinstance(scores, dict):
        raise UserError(f"{where}: scores={scores!r} must be an object, from names to lists of numbers")
    scores = {name: _numbers(f"scores {name!r}", row, len(rewards), where) for name, row in scores.items()}
    return _Line(where, prompt, metadata, images, latents, rewards, scores)


def _numbers(name: str, values: Any, count: int | None, where: str) -> list[float]:
    """A list of finite numbers; `count` of them, unless None."""
    numbers = isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    if not numbers:
        raise UserError(f"{where}: {name} = {values!r} must be a list of finite numbers, one for each image")
    if count is not None and len(values) != count:
        raise UserError(f"{where}: {name} has {len(values)} numbers for {count} images")
    return [float(v) for v in values]


def _ranks(values: Any, where: str) -> list[int]:
    if not isinstance(values, list) or not all(type(v) is int and v >= 1 for v in values):
        raise UserError(f"{where}: ranks={values!r} must be a list of whole numbers, 1 for the best, ties allowed")
    return values


def _names(values: Any, count: int, where: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise UserError(f"{where}: images={values!r} must be a list of PNG files, relative to the dataset's folder")
    if len(values) != count:
        raise UserError(f"{where} has {len(values)} images and {count} rewards or ranks; give one for each image")
    return values


def _place(value: Any, folder: Path, where: str) -> tuple[Path, str]:
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("file", "tensor")):
        raise UserError(f'{where}: latents={value!r} must be like {{"file": "latents.safetensors", "tensor": "0"}}')
    _require_known(value, ("file", "tensor"), f"{where}: latents")
    return folder / value["file"], value["tensor"]


def _image(path: Path, where: str) -> Tensor:
    """(3, H, W) fp32 in [0, 1]."""
    return read_image(path, _PNG, f"{where}: {_UNREADABLE}")


def _read(path: Path) -> str:
    advice = ". A dataset is a folder with dataset.json and groups.jsonl, such as dgpo collect writes"
    return read_text(path, "cannot read the dataset's file", advice)


def _require_known(value: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in value:
        if key not in known:
            raise UserError(f"{where} has the unknown key {key!r}. {did_you_mean(key, known)}")
