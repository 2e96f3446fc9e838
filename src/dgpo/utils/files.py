"""Reading what people give and writing what they find: a text, a line of JSON, a file that is whole, tensors."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo.errors import NotHere, UserError

if TYPE_CHECKING:
    from torch import Tensor

_UNFINISHED = ".part"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its name `path` only once the block has ended well: whole or not at all.

    Processes that write the same file at once do not meet: the last one's stays.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def is_unfinished(name: str, of: str) -> bool:
    """Whether a file of this name is what a killed process left of writing `of`."""
    return name.startswith(f"{of}.") and name.endswith(_UNFINISHED)


def read_text(path: Path, failure: str = "cannot read", advice: str = "") -> str:
    """The text of a file in UTF-8, without a byte order mark. failure, advice: begin and end the UserError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        where = "" if path.is_absolute() else f"; it is looked up from the current folder, {Path.cwd()}"
        raise (NotHere if where else UserError)(f"{failure} {str(path)!r}: {error}{where}{advice}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{failure} {str(path)!r}: {error}{advice}") from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that others may read, with the same bytes whenever the content is the same.

    safetensors alone writes files of mode 0600, and metadata in an order that differs from process to process.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), path, dict(metadata) if metadata else None)
    if metadata:
        _sort_metadata(path)
    share(path)


def share(place: Path) -> None:
    """Give a file, or all files of a folder, the permissions that any new file gets here."""
    mode = _mode_of_new_files(place if place.is_dir() else place.parent)
    for path in place.rglob("*") if place.is_dir() else [place]:
        if path.is_file():
            path.chmod(mode)


def sync_tree(folder: Path) -> None:
    """Force every file below `folder`, and the folders themselves, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)


def sync_file(path: Path) -> None:
    """Force a file to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk, where the file system lets one."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sort_metadata(path: Path) -> None:
    """In place: the header is as long as before, so that no tensor moves."""
    with open(path, "rb+") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same entries in another order"
        file.seek(8)
        file.write(text.ljust(length))


def _mode_of_new_files(folder: Path) -> int:
    """Asked of a new file, since reading the umask means to change it, for all threads."""
    probe = folder / f".mode-{os.getpid()}"
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()


def json_object(text: str, where: str, form: str = "an object in braces") -> dict[str, Any]:
    """The object that `text` holds. where: its place, and form: what was awaited, for the UserError."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} is {text.strip()[:80]!r}; it must be {form}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; of two equal keys the first would be dropped without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found
