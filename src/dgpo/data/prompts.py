"""Prompts and where they come from: texts, files, the Hugging Face hub, an embedded world.

A prompt is a text and a dict of metadata for the rewards that need one (GenEval's `tag` and `include`, an OCR target).
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dgpo.errors import UserError, did_you_mean
from dgpo.utils.files import json_object, read_text

FORMS = (
    "a list of prompts, of (prompt, metadata) or of sources, FILE.txt, FILE.jsonl, hf:NAME[:SPLIT[:COLUMN]], "
    "shapes:train, shapes:seen or shapes:unseen, words:train, words:seen or words:unseen, "
    "geneval:train, geneval:test, geneval:unseen or geneval:benchmark, ocr:train or ocr:test, "
    "optionally with kinds (shapes:train:counting,colors)"
)
CAPTIONS = ("text", "caption", "description", "target")
"""Keys under which other data sets keep a prompt."""
HUB, BUILT_IN = "hf:", ("shapes:", "words:", "geneval:", "ocr:")
_FILES = (".txt", ".jsonl")
_FORM = 'an object such as {"prompt": "a cat"}'
_HF_SOURCE = re.compile(r"hf:(?P<name>[^:]+)(:(?P<split>[^:\[]+(\[[^\]]*\])?))?(:(?P<column>[^:]+))?")


@dataclass(frozen=True)
class PromptSet:
    """Prompts and their metadata, row by row. places: where each came from, such as "line 3 of 'x.txt'", if known."""

    prompts: list[str]
    metadata: list[dict[str, Any]]
    places: list[str] = field(default_factory=list, compare=False)

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
        places = [self.places[i] for i in index] if self.places else []
        return PromptSet([self.prompts[i] for i in index], [self.metadata[i] for i in index], places)

    def place(self, index: int) -> str:
        """Where a row came from, for messages."""
        return self.places[index] if self.places else f"prompt {index}"


def load_prompts(source: str | Path | PromptSet | Iterable[Any]) -> PromptSet:
    """Read prompts from any of `FORMS`; several sources one after another.

    At least one prompt, from every source, or a UserError that says what is wrong where.
    """
    if isinstance(source, PromptSet):
        rows = [
            _Row(prompt, row, source.place(i)) for i, (prompt, row) in enumerate(zip(source.prompts, source.metadata))
        ]
    else:
        given = str(source) if isinstance(source, (str, Path)) else [*source]
        rows = [row for one in sources_of(given) for row in _source_rows(one)]
        rows = rows or [_row(item, f"prompt number {number}") for number, item in enumerate(given, start=1)]
    if not rows:
        raise UserError("there is no prompt in the given list; a run needs at least one")
    return PromptSet([row.prompt for row in rows], [row.metadata for row in rows], [row.place for row in rows])


def sources_of(prompts: str | Iterable[Any]) -> tuple[str, ...]:
    """The files and other lists that a config's `prompts` names; none where they are the texts themselves."""
    if isinstance(prompts, str):
        return (prompts,)
    named, others = [], []
    for item in prompts:
        (named if _is_source(item) else others).append(item)
    if named and others:
        raise UserError(
            f"the list of prompts has {str(named[0])!r}, which names a list of prompts, beside {others[0]!r}, which "
            "does not; give texts or sources"
        )
    return tuple(map(str, named))


def _is_source(item: Any) -> bool:
    """Whether an item of a list is no prompt: nobody asks for a picture of `train.txt` or `hf:name`."""
    if isinstance(item, Path):
        return True
    if not isinstance(item, str) or (not item.startswith((HUB, *BUILT_IN)) and not item.endswith(_FILES)):
        return False
    return not any(letter.isspace() for letter in item) or os.path.isfile(item)  # False for a long text, too


def _source_rows(source: str) -> list[_Row]:
    if source.startswith(HUB):
        rows = [*_hub_rows(source)]
    elif source.startswith(BUILT_IN):
        rows = _world_rows(source)
    else:
        rows = [*_file_rows(Path(source))]
    if not rows:
        raise UserError(f"there is no prompt in {source!r}; a run needs at least one")
    return rows


class _Row(NamedTuple):
    prompt: str
    metadata: dict[str, Any]
    place: str


def _row(item: Any, where: str) -> _Row:
    """A row from a string, a pair, or a dict with the key `prompt`; `where` names it in errors."""
    if isinstance(item, str):
        prompt, metadata = item, {}
    elif isinstance(item, dict):
        if "prompt" not in item:
            raise UserError(f"{where} has no prompt: {_other_keys(item)}")
        metadata = {key: value for key, value in item.items() if key != "prompt"}
        prompt = item["prompt"]
    elif isinstance(item, Sequence) and len(item) == 2 and isinstance(item[1], dict):
        prompt, metadata = item[0], dict(item[1])
    else:
        raise UserError(f"{where} is {item!r}; give a string, (prompt, metadata) or a dict with the key 'prompt'")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where} has no prompt: got {prompt!r} where a text must stand")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise UserError(f"{where} holds half of a surrogate pair, which is no character: {prompt!r}; write it in UTF-8")
    return _Row(prompt, metadata, where)


def _other_keys(item: dict[Any, Any]) -> str:
    """What stands there instead, and the key that may be meant."""
    keys = ", ".join(repr(str(key)) for key in item)
    meant = next((key for key in CAPTIONS if isinstance(item.get(key), str)), None)
    rename = f"; rename {meant!r} if it holds the text" if meant else ""
    return f"its keys are {keys or 'none'}, and the text must stand under 'prompt'{rename}"


def _file_rows(path: Path) -> Iterator[_Row]:
    if path.suffix not in _FILES:
        raise UserError(f"cannot read prompts from {str(path)!r}; give {FORMS}")
    for number, line in enumerate(read_text(path, "cannot read the prompt file").split("\n"), start=1):
        if line.strip():
            where = f"line {number} of {str(path)!r}"
            yield _row(line.strip() if path.suffix == ".txt" else json_object(line, where, _FORM), where)


def _world_rows(source: str) -> list[_Row]:
    from dgpo.data import ocr_prompts as ocr
    from dgpo.rewards.builtin.geneval import prompts as geneval
    from dgpo.worlds.shapes import prompts as shapes
    from dgpo.worlds.words import prompts as words

    world, split, *kinds = source.split(":")
    if len(kinds) > 1:
        raise UserError(f"cannot read prompts from {source!r}; the form is {world}:SPLIT[:KIND,KIND]")
    names = tuple(kind.strip() for kind in kinds[0].split(",")) if kinds else None
    load = {"geneval": geneval.load, "shapes": shapes.load, "words": words.load, "ocr": ocr.load}[world]
    return [_row(item, f"prompt {number} of {source!r}") for number, item in enumerate(load(split, names), start=1)]


def _hub_rows(source: str) -> Iterator[_Row]:
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
