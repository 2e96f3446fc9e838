"""Checkpoints of a run: safetensors and JSON only, whole or not there at all.

    RUN/checkpoints/iteration-000004/
        policy.safetensors, old.safetensors, ...   one file per named dict of tensors, see shards.py
        state.json                                 format, dgpo version, iteration and the caller's own counters
        checksums.json                             sha256 of every file above (and of exports written beside them)

A checkpoint is written to a hidden sibling folder, fsynced, and renamed, so a run killed at any moment leaves only
whole ones. Nothing that a run has produced is silently replaced: an iteration that is already saved with the same
tensors is left as it is, one with other tensors is refused, a damaged one is moved to `checkpoints/set-aside/`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dgpo import __version__, distributed
from dgpo.distributed.sharded import rows_here
from dgpo.errors import UserError
from dgpo.run import shards
from dgpo.utils.files import save_tensors, sync_file, sync_folder, sync_tree

FORMAT = 1
SHARDED_FORMAT = 2
_NAME = re.compile(r"iteration-(\d{6,})")
_PARTIAL = ".partial-"


def folder_of(run_dir: str | Path, iteration: int) -> Path:
    """The folder of this iteration's checkpoint."""
    return _folder(run_dir) / f"iteration-{iteration:06d}"


def save(
    run_dir: str | Path,
    iteration: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write one checkpoint and return its folder. `state` is JSON; `extra(folder)` may add exports of its own."""
    final = folder_of(run_dir, iteration)
    remove_leftovers(run_dir)
    require_free_space(final, sum(tensor.nbytes for group in tensors.values() for tensor in group.values()))
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(run_dir, iteration)
    try:
        partial.mkdir()
        _write_tensors(partial, tensors)
        if extra is not None:
            extra(partial)
        header = {"format": FORMAT, "dgpo": __version__, "iteration": iteration, "tensors": list(tensors)}
        _write_json(partial / "state.json", {**header, "state": dict(state)})
        _write_json(partial / "checksums.json", {name: _sha256(partial / name) for name in _files(partial)})
        sync_tree(partial)
        _put_in_place(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def save_shards(
    run_dir: str | Path,
    iteration: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    extra: Callable[[Path], None],
) -> Path:
    """The same of a sharded run: all ranks call it, each with its rows, and each writes, forces and hashes its own.

    extra(folder) is called on the first. Where anything fails on one rank, all raise, and nothing is left.
    """
    begin_shards(run_dir, iteration, tensors)
    try:
        own = distributed.together(lambda: write_shards(run_dir, iteration, tensors))
    except BaseException:
        if distributed.is_main():
            shutil.rmtree(_partial(run_dir, iteration), ignore_errors=True)
        raise
    return end_shards(run_dir, iteration, [*tensors], own, state, extra)


def begin_shards(run_dir: str | Path, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Make room for a checkpoint of a sharded run; all ranks call it."""
    sizes = distributed.gather_objects([sum(t.nbytes for group in tensors.values() for t in group.values())])

    def begin() -> None:
        remove_leftovers(run_dir)
        require_free_space(folder_of(run_dir, iteration), sum(sizes))
        _partial(run_dir, iteration).mkdir(parents=True)

    distributed.on_main(begin)


def write_shards(run_dir: str | Path, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Write this rank's files, forced to the disk, and return their checksums; no other rank is waited for."""
    partial = _partial(run_dir, iteration)
    names = _write_tensors(partial, tensors, distributed.rank(), distributed.world_size())
    for name in names:
        sync_file(partial / name)
    return {name: _sha256(partial / name) for name in names}


def end_shards(
    run_dir: str | Path,
    iteration: int,
    names: Sequence[str],
    own: Mapping[str, str],
    state: Mapping[str, Any],
    extra: Callable[[Path], None],
) -> Path:
    """Put in place what all ranks have written, and return its folder; all call it.

    names: of the dicts of tensors; own: what `write_shards` has returned on this rank; extra(folder): on the first
    """
    final, partial, ranks = folder_of(run_dir, iteration), _partial(run_dir, iteration), distributed.world_size()
    hashed = {name: checksum for part in distributed.gather_objects([own]) for name, checksum in part.items()}

    def end() -> None:
        extra(partial)
        header = {"format": SHARDED_FORMAT, "dgpo": __version__, "iteration": iteration, "tensors": [*names]}
        _write_json(partial / "state.json", {**header, "shards": ranks, "state": dict(state)})
        rest = {name: _sha256(partial / name) for name in _files(partial) if name not in hashed}
        _write_json(partial / "checksums.json", dict(sorted({**hashed, **rest}.items())))
        sync_tree(partial)
        _put_in_place(partial, final)

    try:
        distributed.on_main(end)
    finally:
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
    return final


def copied(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The same in host memory, as they are now."""
    return {name: {key: _on_cpu(tensor) for key, tensor in group.items()} for name, group in tensors.items()}


def load(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """({name: {key: tensor}}, state) of one checkpoint, verified first; tensors are on the CPU."""
    path = Path(path)
    _require_format(path)
    _require_whole(path, damage(path))
    header = _read_json(path / "state.json")
    return {name: shards.read(path, name, header.get("shards", 1)) for name in header["tensors"]}, header["state"]


def load_shards(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The same for a sharded run: all ranks call it, each verifies a share of the files and gets its rows."""
    rank, ranks = distributed.rank(), distributed.world_size()
    _require_format(path)
    problems = distributed.gather_objects([damage(path, rank, ranks)])
    _require_whole(path, next(filter(None, problems), None))

    def read() -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        header = _read_json(path / "state.json")
        written = header.get("shards", 1)
        if written == ranks:
            return {name: shards.read_own(path, name, rank, ranks) for name in header["tensors"]}, header["state"]
        return {name: shards.read(path, name, written, rows_here) for name in header["tensors"]}, header["state"]

    return distributed.together(read)


def read_state(path: Path) -> dict[str, Any]:
    """The state of one checkpoint without its tensors, which are neither read nor verified."""
    _require_format(path)
    try:
        whole = _sha256(path / "state.json") == _read_json(path / "checksums.json")["state.json"]
        state = _read_json(path / "state.json")["state"]
    except (OSError, ValueError, TypeError, KeyError):
        whole, state = False, {}
    if not whole:
        raise UserError(f"the checkpoint {path} is damaged: {damage(path)}. {_way_out(path)}")
    return state


def damage(path: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with a checkpoint's first damaged file, None where every file is as it was written.

    share: which of so many parts of the files is looked at
    """
    if not path.is_dir():
        return "there is no such folder"
    try:
        checksums = {"state.json": None, **_read_json(path / "checksums.json")}
    except (OSError, ValueError, TypeError) as error:
        return f"checksums.json cannot be read ({error})"
    for name, checksum in [*checksums.items()][share::shares]:
        try:
            if _sha256(path / name) != checksum:
                return f"{name} is not what was written (its checksum differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, damaged ones included."""
    found = [path for path in _folder(run_dir).glob("iteration-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=iteration_of)


def iteration_of(path: Path) -> int:
    """4 for .../iteration-000004."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{str(path)!r} is not a checkpoint; its folder would be called like iteration-000004")
    return int(match[1])


def holds_any(run_dir: str | Path) -> bool:
    """Whether a run has anything in checkpoints/ but the leftovers of an interrupted save."""
    folder = _folder(run_dir)
    return folder.is_dir() and any(not path.name.startswith(_PARTIAL) for path in folder.iterdir())


def latest(run_dir: str | Path) -> Path | None:
    """The newest checkpoint, intact or not: `load` says so where it is damaged. None where there is none."""
    return next(reversed(list_checkpoints(run_dir)), None)


def latest_good(run_dir: str | Path) -> Path | None:
    """The newest checkpoint that is intact and whose tensors are finite."""
    return next((path for path in reversed(list_checkpoints(run_dir)) if _is_good(path)), None)


def require_finite(path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse to continue from a checkpoint whose tensors, as loaded, hold NaN or infinity."""
    bad = not_finite(tensors)
    if bad:
        raise UserError(f"the checkpoint {path} cannot be continued: {', '.join(bad)} not finite. {_way_out(path)}")


def not_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """The names of the dicts of tensors that hold NaN or infinity.

    Either spoils a sum, which takes no memory: this is asked after running out of it.
    """
    return [name for name, group in tensors.items() if not all(map(_is_finite, group.values()))]


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or math.isfinite(tensor.sum(dtype=torch.float32).item())


def prune(run_dir: str | Path, keep_last: int, keep: Collection[int] = ()) -> None:
    """Delete all checkpoints but the newest `keep_last` and those of the iterations in `keep`."""
    if keep_last < 1:
        raise UserError(f"keep_last={keep_last} would delete the newest checkpoint; keep at least 1")
    for path in list_checkpoints(run_dir)[:-keep_last]:
        if iteration_of(path) not in keep:
            path.rename(path.with_name(_PARTIAL + path.name))
    remove_leftovers(run_dir)


def rewind(run_dir: str | Path, iteration: int) -> None:
    """Move checkpoints later than `iteration` to `set-aside/`, for a run that continues from an earlier one."""
    for path in list_checkpoints(run_dir):
        if iteration_of(path) > iteration:
            _set_aside(path)


def remove_leftovers(run_dir: str | Path) -> None:
    """Delete what an interrupted save or prune left half done. `save` and `prune` do so themselves."""
    for path in _folder(run_dir).glob(f"{_PARTIAL}*"):
        shutil.rmtree(path)


def require_free_space(path: str | Path, needed: int) -> None:
    """Raise a UserError unless the disk that holds `path` (existing or to be made) has `needed` bytes free."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{path} needs {needed / 1e9:.3f} GB, and its disk has {free / 1e9:.3f} GB free; make room, choose "
            "another folder, or keep fewer checkpoints"
        )


def _write_tensors(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], rank: int = 0, ranks: int = 1
) -> list[str]:
    """Write a file for each dict, and return their names."""
    for name, group in tensors.items():
        path = folder / shards.file_name(name, rank, ranks)
        save_tensors(_writable(group), path)
    return [shards.file_name(name, rank, ranks) for name in tensors]


def _require_whole(path: Path, problem: str | None) -> None:
    if problem is not None:
        raise UserError(f"the checkpoint {path} is damaged: {problem}. {_way_out(path)}")


def _put_in_place(partial: Path, final: Path) -> None:
    if final.exists() and damage(final) is None:
        if not _same_tensors(partial, final):
            raise UserError(
                f"{final} already holds other tensors and is not replaced; choose another run folder, or move the "
                "checkpoints later than the one you continue from out of the way"
            )
        return
    if final.exists():
        _set_aside(final)
    partial.rename(final)
    sync_folder(final.parent)


def _same_tensors(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same, told by checksums, or by reading where other ranks wrote them."""
    headers = [_read_json(path / "state.json") for path in (one, other)]
    if headers[0]["tensors"] != headers[1]["tensors"]:
        return False
    written = [header.get("shards", 1) for header in headers]
    if written[0] == written[1]:
        return _tensor_checksums(one) == _tensor_checksums(other)
    for name in headers[0]["tensors"]:
        ours, theirs = (shards.read(path, name, number) for path, number in zip((one, other), written))
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return False
    return True


def _tensor_checksums(path: Path) -> dict[str, str]:
    header, checksums = _read_json(path / "state.json"), _read_json(path / "checksums.json")
    files = [file.name for name in header["tensors"] for file in shards.files(path, name, header.get("shards", 1))]
    return {name: checksums[name] for name in files}


def _set_aside(path: Path) -> None:
    shelf = path.parent / "set-aside"
    shelf.mkdir(exist_ok=True)
    number = sum(1 for _ in shelf.iterdir())
    path.rename(shelf / f"{number:03d}-{path.name}")


def _way_out(path: Path) -> str:
    """How to go on from a damaged checkpoint: with the newest intact one before it."""
    earlier = list_checkpoints(path.parent.parent) if _NAME.fullmatch(path.name) else []
    for candidate in reversed(earlier):
        if iteration_of(candidate) < iteration_of(path) and _is_good(candidate):
            return f"Move {path} to another place to continue from the newest intact one before it, {candidate}"
    return "There is no intact checkpoint before it"


def _is_good(path: Path) -> bool:
    if damage(path) is not None:
        return False
    header = _read_json(path / "state.json")
    files = [file for name in header["tensors"] for file in shards.files(path, name, header.get("shards", 1))]
    return all(not not_finite({file.name: load_file(file)}) for file in files)


def _require_format(path: Path) -> None:
    """Before the checksums, since another format may have other ones. A damaged header is left to `damage`."""
    try:
        header = _read_json(path / "state.json")
        found, writer = header["format"], header["dgpo"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if found not in (FORMAT, SHARDED_FORMAT):
        raise UserError(
            f"the checkpoint {path} has format {found}, written by dgpo {writer}; this is dgpo {__version__}, which "
            f"reads format {FORMAT}. Continue the run with the version that wrote it"
        )


def _partial(run_dir: str | Path, iteration: int) -> Path:
    """Where a checkpoint is written."""
    final = folder_of(run_dir, iteration)
    return final.with_name(_PARTIAL + final.name)


def _folder(run_dir: str | Path) -> Path:
    return Path(run_dir) / "checkpoints"


def _writable(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors needs them; those that are so already are not copied."""
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in group.values())

    def alone(tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        return tensor.device.type == "cpu" and whole and users[storage.data_ptr()] == 1

    return {key: tensor.detach() if alone(tensor) else _on_cpu(tensor) for key, tensor in group.items()}


def _on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy that shares memory with nothing, as safetensors needs it."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _files(folder: Path) -> Iterator[str]:
    """Names of all files below `folder`, relative to it, sorted."""
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
