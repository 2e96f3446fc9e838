"""What the frozen text encoders say of a prompt: computed once, kept in memory or on disk, and the encoders let go.

A run that keeps its encoders asks them for a prompt when it is first drawn, each alone, so that a row depends on its
prompt only. A run that lets them go (`free_text_encoders`) encodes every prompt it can ever need before its first
iteration, in batches, each time in the same order. On disk a prompt's file is named by a hash of prompt and encoders,
so that runs of several models share a folder and never take each other's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from dgpo.errors import UserError
from dgpo.models import Cond, Rows, VelocityModel
from dgpo.utils.files import save_tensors, whole
from dgpo.utils.progress import Tell, silent

BATCH = 16
"""Prompts that the encoders read at a time."""


class CondCache:
    """Prompts -> rows of conditioning, on the CPU."""

    def __init__(
        self, model: VelocityModel, folder: str | Path | None = None, size: int = 2048, tell: Tell = silent
    ) -> None:
        """folder: keeps rows for later runs; size: rows in memory, those used last, of prompts that are not `known`.

        tell: hears how many of the prompts that the encoders are asked for are encoded
        """
        self._model = model
        self._known: dict[str, Cond] = {}
        self._disk = _Disk(Path(folder), model) if folder is not None else None
        self._recent: dict[str, Cond] = {}  # the one used last at the end
        self._size, self._tell = size, tell

    def __call__(self, prompts: list[str]) -> Cond:
        """len(prompts) rows."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._recent and not self._has(prompt)]
        waiting, rows = {prompt: place for place, prompt in enumerate(new)}, list[Cond]()
        for prompt in prompts:
            if prompt in waiting:
                self._tell("encoding", waiting.pop(prompt), len(new))
            rows.append(self._row(prompt))
        return rows[0].cat(*rows[1:])

    def know(self, prompts: Iterable[str]) -> None:
        """Encode these now, in batches, so that the encoders are not asked for them again.

        With a folder the rows stay there and not in memory.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if not self._has(prompt)]
        for start in range(0, len(missing), BATCH):
            self._tell("encoding", start, len(missing))
            batch = missing[start : start + BATCH]
            rows = self._model.encode(batch).to("cpu")
            for place, prompt in enumerate(batch):
                self._keep(prompt, rows[place : place + 1])

    def know_all(self, prompts: Iterable[str]) -> None:
        """Encode all that will ever be asked, the empty prompt too, and let the encoders go."""
        self.know([*prompts, ""])
        self._model.free_encoders()

    def _has(self, prompt: str) -> bool:
        return prompt in self._known or (self._disk is not None and self._disk.path(prompt).exists())

    def _keep(self, prompt: str, row: Cond) -> None:
        if self._disk is not None:
            self._disk.write(prompt, row)
        else:
            self._known[prompt] = row

    def _row(self, prompt: str) -> Cond:
        """The row of one prompt, which is then the one used last."""
        if prompt in self._known:
            return self._known[prompt]
        row = self._recent.pop(prompt, None)
        self._recent[prompt] = row = self._read(prompt) if row is None else row
        if len(self._recent) > self._size:
            del self._recent[next(iter(self._recent))]
        return row

    def _read(self, prompt: str) -> Cond:
        if self._disk is None:
            return self._model.encode([prompt]).to("cpu")
        if not self._disk.path(prompt).exists():
            self._disk.write(prompt, self._model.encode([prompt]).to("cpu"))
        return self._disk.read(prompt)


class _Disk:
    """One safetensors file a prompt."""

    def __init__(self, folder: Path, model: VelocityModel) -> None:
        space = getattr(model, "text_space", None)
        if space is None:
            raise UserError(
                f"prompt_cache={str(folder)!r} needs a model that tells its text encoders apart (`text_space`), and "
                f"{type(model).__name__} does not; take prompt_cache=None, which keeps prompts in memory"
            )
        self._folder, self._space = folder, json.dumps(space, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"prompt_cache={str(folder)!r} cannot be made: {error}") from error

    def path(self, prompt: str) -> Path:
        name = hashlib.sha256(f"{self._space}\n{prompt}".encode()).hexdigest()
        return self._folder / f"{name}.safetensors"

    def read(self, prompt: str) -> Cond:
        path = self.path(prompt)
        try:
            return Rows(load_file(path))
        except Exception as error:
            raise UserError(f"{path} is damaged ({error}); delete it, and the prompt is encoded again") from error

    def write(self, prompt: str, row: Any) -> None:
        """Whole or not at all, whoever else writes the same."""
        path = self.path(prompt)
        tensors = {name: tensor.contiguous().clone() for name, tensor in row.tensors.items()}
        with whole(path) as unfinished:
            save_tensors(tensors, unfinished, {"prompt": prompt})
