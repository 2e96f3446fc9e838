"""Damage to the files of a saved pipeline, and what comes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgpo.core.solvers import solve
from dgpo.errors import UserError
from dgpo.models import load_model

Fault = Callable[[Path], None]
Tensors = dict[str, Tensor]


class Case(NamedTuple):
    """One file and what is done to it."""

    file: str  # inside the pipeline's folder
    fault: str


def cases(folder: Path) -> Iterator[Case]:
    """Every fault of every file."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        kinds = TENSOR_FAULTS if path.suffix == ".safetensors" else {}
        kinds = {**FILE_FAULTS, **(JSON_FAULTS if path.suffix == ".json" else {}), **kinds}
        yield from (Case(str(path.relative_to(folder)), fault) for fault in kinds)


def outcome(folder: Path, case: Case, scratch: Path, whole: Tensor) -> tuple[str, str]:
    """("same" | "refused" | "differs" | "crashed", what was said). whole: what the undamaged pipeline has `drawn`."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch)
    ALL_FAULTS[case.fault](scratch / case.file)
    try:
        pictures = drawn(scratch, whole.shape[-1])
    except UserError as error:
        return "refused", str(error)
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"
    return ("same" if torch.equal(pictures, whole) else "differs"), ""


@torch.no_grad()
def drawn(folder: Path, resolution: int = 64) -> Tensor:
    """Two pictures, guided, in two steps: every part of the pipeline takes part."""
    model = load_model(folder, device="cpu", sets=(), resolution=resolution)
    noise = model.init_noise([torch.Generator().manual_seed(i) for i in range(2)])
    cond = model.encode(["a red cat", "two dogs"])
    return model.decode(solve(lambda x, t: model.velocity(x, t, cond, 3.0), noise, model.sigmas(2), "euler"))


def _cut(share: float) -> Fault:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _written(text: str) -> Fault:
    return lambda path: path.write_text(text) and None


def _tensors(change: Callable[[Tensors, str], None]) -> Fault:
    """change: of the tensors, in place; it gets the name of the largest."""

    def fault(path: Path) -> None:
        tensors = load_file(path)
        change(tensors, max(sorted(tensors), key=lambda name: tensors[name].numel()))
        save_file(tensors, path, {"format": "pt"})

    return fault


def _lack(tensors: Tensors, name: str) -> None:
    del tensors[name]


def _rename(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_"] = tensors.pop(name)


def _reshape(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].new_zeros(3, 5)


def _spoil(tensors: Tensors, name: str) -> None:
    tensors[name].view(-1)[-1] = torch.nan


FILE_FAULTS: dict[str, Fault] = {"deleted": Path.unlink, "emptied": _cut(0), "cut in half": _cut(0.5)}
JSON_FAULTS: dict[str, Fault] = {
    "is a list": _written("[]"),
    "is empty braces": _written("{}"),
    "is null": _written("null"),
}
TENSOR_FAULTS: dict[str, Fault] = {
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]) and None,
    "lacks a tensor": _tensors(_lack),
    "renames a tensor": _tensors(_rename),
    "has a wrong shape": _tensors(_reshape),
    "holds a NaN": _tensors(_spoil),
}
ALL_FAULTS = FILE_FAULTS | JSON_FAULTS | TENSOR_FAULTS
