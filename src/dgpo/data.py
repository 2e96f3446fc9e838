"""Prompts: where they come from, and in which order a run draws them.

A prompt is a text and a dict of metadata for the rewards that need one (GenEval's `tag` and `include`, an OCR target).
The sampler hands out whole groups: one prompt index per group, a fresh permutation per epoch, distinct prompts within
a batch. A batch never straddles two epochs (the two halves could repeat a prompt, and two groups of one prompt would no
longer be normalised together), so the few prompts an epoch has left over are skipped; which ones changes every epoch.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dgpo.core.seeds import generator
from dgpo.errors import UserError, did_you_mean
from dgpo.files import json_object

FORMS = (
    "a list of prompts or of (prompt, metadata), FILE.txt, FILE.jsonl, hf:NAME[:SPLIT[:COLUMN]], "
    "shapes:train, shapes:seen or shapes:unseen, words:train, words:seen or words:unseen, "
    "geneval:train, geneval:test, geneval:unseen or geneval:benchmark, "
    "optionally with kinds (shapes:train:counting,colors)"
)
_FORM = 'an object such as {"prompt": "a cat"}'
_HF_SOURCE = re.compile(r"hf:(?P<name>[^:]+)(:(?P<split>[^:\[]+(\[[^\]]*\])?))?(:(?P<column>[^:]+))?")


@dataclass(frozen=True)
class PromptSet:
    """Prompts and their metadata, row by row."""

    prompts: list[str]
    metadata: list[dict[str, Any]]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.metadata):
            raise UserError(
                f"{len(self.prompts)} prompts came with {len(self.metadata)} metadata; each prompt needs exactly "
                "one dict, {} where there is nothing to say"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def subset(self, index: Iterable[int]) -> PromptSet:
        """The rows named by `index`, in that order."""
        index = list(index)
        return PromptSet([self.prompts[i] for i in index], [self.metadata[i] for i in index])


def load_prompts(source: str | Path | PromptSet | Iterable[Any]) -> PromptSet:
    """Read prompts from any of `FORMS`. At least one prompt, or a UserError that says what is wrong where."""
    if isinstance(source, PromptSet):
        rows = list(zip(source.prompts, source.metadata))
    elif not isinstance(source, (str, Path)):
        rows = [_row(item, f"prompt number {number}") for number, item in enumerate(source, start=1)]
    elif str(source).startswith("hf:"):
        rows = list(_hub_rows(str(source)))
    elif str(source).startswith(("shapes:", "words:", "geneval:")):
        rows = _world_rows(str(source))
    else:
        rows = list(_file_rows(Path(source)))
    if not rows:
        raise UserError(f"there is no prompt in {_name(source)}; a run needs at least one")
    return PromptSet([prompt for prompt, _ in rows], [metadata for _, metadata in rows])


def _name(source: Any) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else "the given list"


def _row(item: Any, where: str) -> tuple[str, dict[str, Any]]:
    """(prompt, metadata) from a string, a pair, or a dict with the key `prompt`; `where` names it in errors."""
    if isinstance(item, str):
        prompt, metadata = item, {}
    elif isinstance(item, dict):
        metadata = {key: value for key, value in item.items() if key != "prompt"}
        prompt = item.get("prompt")
    elif isinstance(item, Sequence) and len(item) == 2 and isinstance(item[1], dict):
        prompt, metadata = item[0], dict(item[1])
    else:
        raise UserError(f"{where} is {item!r}; give a string, (prompt, metadata) or a dict with the key 'prompt'")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where} has no prompt: got {prompt!r} where a text must stand")
    return prompt, metadata


def _file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"cannot read prompts from {str(path)!r}; give {FORMS}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompt file {str(path)!r}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"line {number} of {str(path)!r}"
            yield _row(line.strip() if path.suffix == ".txt" else json_object(line, where, _FORM), where)


def _world_rows(source: str) -> list[tuple[str, dict[str, Any]]]:
    from dgpo.worlds.geneval import prompts as geneval
    from dgpo.worlds.shapes import prompts as shapes
    from dgpo.worlds.words import prompts as words

    world, split, *kinds = source.split(":")
    if len(kinds) > 1:
        raise UserError(f"cannot read prompts from {source!r}; the form is {world}:SPLIT[:KIND,KIND]")
    names = tuple(kind.strip() for kind in kinds[0].split(",")) if kinds else None
    load = {"geneval": geneval.load, "shapes": shapes.load, "words": words.load}[world]
    return [_row(item, f"prompt of {source!r}") for item in load(split, names)]


def _hub_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    match = _HF_SOURCE.fullmatch(source)
    if match is None:
        raise UserError(f"cannot read prompts from {source!r}; the form is hf:NAME[:SPLIT[:COLUMN]]")
    column = match["column"] or "prompt"
    dataset = _dataset(match["name"], match["split"] or "train")
    if column not in dataset.column_names:
        raise UserError(f"{source!r} has no column {column!r}. {did_you_mean(column, dataset.column_names)}")
    plain = [name for name, feature in dataset.features.items() if not hasattr(feature, "decode_example")]
    for number, item in enumerate(dataset.select_columns(plain)):
        prompt = item.pop(column)
        yield _row((prompt, item), f"row {number} of {source!r}")


def _dataset(name: str, split: str) -> Any:
    """A `datasets.Dataset` from the Hub, a local file or folder, or a folder that `save_to_disk` wrote."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError("prompts from hf: need the package datasets: pip install 'dgpo[datasets]'") from error
    path = Path(name)
    saved = [state.parent for state in path.glob("**/state.json")] if path.is_dir() else []
    try:
        if saved:
            files = {"train" if folder == path else folder.name: str(folder / "*.arrow") for folder in saved}
            return datasets.load_dataset("arrow", data_files=files, split=split)
        if path.is_file():
            return datasets.load_dataset(str(path.parent), data_files=path.name, split=split)
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot load the dataset {name!r} with split {split!r}: {error}") from error


class PromptSampler:
    """Prompt indices for one batch after another. Its whole state is how many indices are behind it."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise UserError(f"a sampler over {size} prompts has nothing to draw; give at least one")
        self.size, self.seed, self.position = size, seed, 0

    def next(self, num_groups: int) -> list[int]:
        """`num_groups` indices in [0, size), all distinct wherever num_groups <= size."""
        if num_groups <= self.size - self.position % self.size or num_groups > self.size:
            start = self.position
        else:
            start = (self.position // self.size + 1) * self.size
        self.position = start + num_groups
        epochs = range(start // self.size, (self.position - 1) // self.size + 1)
        order = {epoch: self._permutation(epoch) for epoch in epochs}
        return [order[i // self.size][i % self.size] for i in range(start, self.position)]

    def _permutation(self, epoch: int) -> list[int]:
        return torch.randperm(self.size, generator=generator(self.seed, "prompts", epoch)).tolist()

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
