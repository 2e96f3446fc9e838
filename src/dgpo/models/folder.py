"""A pipeline folder, read part by part and looked at: every tensor is there, and so is every tokenizer's vocabulary.

The libraries only warn of a tensor that a file lacks: the network gets random values in its place, and draws and trains
as if nothing were wrong. Here that is an error, and so is a tensor that a network has no place for, with three
exceptions that published pipelines need: what the library itself ignores or ties; buffers that a network computes for
itself and that older versions saved (`position_ids`); and heads and towers of a larger model that a text encoder was
cut from (`lm_head`, `vision_model`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dgpo.errors import UserError
from dgpo.models.unread import Unread, is_finite

VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",))
"""Files of which a tokenizer needs one set."""
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of pipelines that look at pictures, not at prompts: no family here asks them."""


def read_index(source: str) -> dict[str, Any]:
    """What model_index.json of a folder or a hub id says."""
    from huggingface_hub import hf_hub_download

    try:
        path = Path(source, "model_index.json")
        index = _json(path if path.is_file() else Path(hf_hub_download(source, path.name)))
        if "_class_name" not in index:
            raise ValueError("it has no '_class_name', which says what pipeline it is")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read model_index.json of {source}: {error}") from error
    return index


def read_pipeline(
    source: str, index: Mapping[str, Any], dtypes: Mapping[str, torch.dtype], unread: Unread | None = None
) -> Any:
    """The whole pipeline on the CPU. dtypes: by the part's name, and "default"; unread: the part that is read later."""
    from diffusers import DiffusionPipeline

    absent, folder = _absent(index), fetched(source, index)
    with damage_told(f"cannot load the pipeline {source}"):
        parts = dict(_networks(folder, {k: v for k, v in index.items() if k not in absent}, dtypes, unread))
        pipeline = DiffusionPipeline.from_pretrained(folder, **parts, **absent)
    for name, part in pipeline.components.items():
        if "tokenizer" in name and part is not None:
            _require_words(folder / name, part)
    return pipeline


def fetched(source: str, index: Mapping[str, Any]) -> Path:
    """The pipeline's folder, with all of its files; those of a hub id are downloaded first, where they are not here."""
    from diffusers import DiffusionPipeline

    if Path(source).is_dir():
        return Path(source)
    with damage_told(f"cannot load the pipeline {source}"):
        return Path(DiffusionPipeline.download(source, use_safetensors=True, **_absent(index)))


def _absent(index: Mapping[str, Any]) -> dict[str, None]:
    """Parts that diffusers must be told are left out: those saved as [null, null] (SD3 without T5), and unused ones."""
    return {name: None for name, value in index.items() if value == [None, None] or name in _UNUSED}


def class_of(index: Mapping[str, Any], name: str) -> type:
    """The class of a part, which model_index.json names."""
    value = index.get(name)
    try:
        library, kind = index[name]
        return getattr(import_module(library), kind)
    except (KeyError, ValueError, TypeError, ImportError, AttributeError) as error:
        raise UserError(f"model_index.json says {value!r} of {name}; it must be [library, class]") from error


def has_vocabulary(folder: Path) -> bool:
    """Whether the files of a real tokenizer are in its folder."""
    return any(all((folder / name).is_file() for name in names) for names in VOCABULARIES)


@contextmanager
def damage_told(what: str) -> Iterator[None]:
    """Whatever the libraries raise in the block becomes one message, for a damaged file fails in many ways.

    Not what is a lack of memory, which has a message of its own.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        said = said if len(said) < 600 else f"{said[:600]}..."
        raise UserError(
            f"{what}: {said or type(error).__name__}. A file is missing or damaged: download or save the pipeline again"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a GPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and warnings of loading: of parts that are absent on purpose, of optional packages."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is first imported
    disabled = logging.root.manager.disable
    # torchao's warnings, which PEFT imports, of kernels for other machines; and errors that are raised as well
    logging.disable(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = [
        (log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_logging, transformers_logging)
    ]
    try:
        for log, _, _ in before:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        logging.disable(disabled)
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def _networks(
    folder: Path, index: Mapping[str, Any], dtypes: Mapping[str, torch.dtype], unread: Unread | None
) -> Iterator[tuple[str, nn.Module]]:
    """(name, network) of each, whole; and a look at the settings of what is none."""
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        if len(value) != 2 or not all(isinstance(word, str) for word in value):
            raise UserError(f"model_index.json says {value!r} of {name}; it must be [library, class]")
        library, kind = value
        if not (folder / name).is_dir():
            raise UserError(f"there is no folder {name}, which model_index.json names. Download or save it again")
        if library not in ("diffusers", "transformers"):
            raise UserError(f"{name} is a {kind} of {library}; only parts of diffusers and transformers are known")
        made = getattr(import_module(library), kind)
        if nn.Module in made.__mro__:
            _require_named(folder / name / "config.json", "_class_name" if library == "diffusers" else "model_type")
            dtype, network = dtypes.get(name, dtypes["default"]), None
            if unread is not None and unread.name == name:
                network = unread.build(made, folder / name, dtype)
            yield name, network or _network(made, library, folder / name, dtype)
        elif library == "diffusers":
            _require_named(folder / name / "scheduler_config.json", "_class_name")
        elif "Tokenizer" in kind:
            _require_vocabulary(folder / name)


def _network(made: Any, library: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    """UserError where a tensor is missing, is one too many, or holds no number."""
    precision = {"torch_dtype" if library == "diffusers" else "dtype": dtype}
    with damage_told(f"{folder.name} ({made.__name__})"):
        network, info = made.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **precision)
        # transformers counts among them what it ties, and that is there
        missing = {key for key in info["missing_keys"] if _lacks(network, key)}
        excess = {key for key in info["unexpected_keys"] if not _harmless(network, key, library)}
        if missing:
            raise UserError(
                f"its files lack {_some(missing)}, which would be random. Download or save the pipeline again"
            )
        if excess:
            raise UserError(
                f"its files hold {_some(excess)}, for which the network that config.json describes has no place. "
                "Download or save the pipeline again"
            )
        broken = [key for key, parameter in network.named_parameters() if not is_finite(parameter)]
        if broken:
            raise UserError(f"its files hold NaN or infinity in {_some(broken)}. Download or save the pipeline again")
    return network


def _lacks(network: nn.Module, key: str) -> bool:
    """Whether a missing tensor is one of its own: a parameter or a buffer that is saved."""
    return key in network.state_dict()


def _harmless(network: nn.Module, key: str, library: str) -> bool:
    """Whether a tensor without a place in the network may be there: see the head of this file."""
    own = dict(network.named_children())
    names = key.split(".")
    prefix = getattr(network, "base_model_prefix", "")
    if prefix and names[0] == prefix and prefix not in own:
        names = names[1:]
    buffers = {name for name, _ in network.named_buffers()}
    if ".".join(names) in buffers or key in buffers:
        return True
    return library == "transformers" and names[0] not in own


def _some(keys: Iterable[str]) -> str:
    """2 tensors (a, b)."""
    keys = sorted(keys)
    named = ", ".join(keys[:3]) + (", ..." if keys[3:] else "")
    return f"{len(keys)} tensor{'s' if keys[1:] else ''} ({named})"


def _require_named(path: Path, key: str) -> None:
    """A configuration that does not say of what it is one: the libraries would take defaults for all of it."""
    try:
        settings = _json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path.parent.name}/{path.name}: {error}") from error
    if key not in settings:
        raise UserError(f"{path.parent.name}/{path.name} has no {key!r}, as every saved configuration has")


def _json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} and no settings")
    return values


def _require_vocabulary(folder: Path) -> None:
    """The files of a tokenizer, without which transformers makes one that reads every prompt alike."""
    _require_named(folder / "tokenizer_config.json", "tokenizer_class")
    if not has_vocabulary(folder):
        sets = " or ".join(" and ".join(names) for names in VOCABULARIES)
        raise UserError(
            f"{folder.name} has no vocabulary: it needs {sets}. Without it every prompt would be read alike. Download "
            "or save the pipeline again"
        )


def _require_words(folder: Path, tokenizer: Any) -> None:
    """A vocabulary of more than special tokens."""
    words = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens)
    if len(words) < 2:
        raise UserError(
            f"the tokenizer in {folder} knows no word, only {len(tokenizer)} special tokens, so that every prompt "
            "would be read alike. Download or save the pipeline again"
        )
