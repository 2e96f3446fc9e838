"""What a reward is, how it is found by name and how it is called.

A reward is any callable `fn(images, prompts, metadata) -> scores`: images (B, 3, H, W) float in [0, 1] on the CPU, B
prompts, B dicts of metadata; scores are B finite numbers, higher is better, or a dict of such. Whatever goes wrong
stops the run with the prompt and the image kept, unless a policy says otherwise (failures.py): no failure ever turns
into a score.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dgpo.errors import RunFailed, UserError
from dgpo.utils.devices import await_kernels
from dgpo.utils.pictures import to_pil

Scores = Any  # (B,) Tensor, ndarray or list of finite numbers, or a dict of those


class Reward(Protocol):
    """A function, or an object with `__call__`. It may declare `required_metadata` and `image_side`, see `requires` and
    `reads_side`.

    One that declares `needs_group`, see `group_reward`, is called with a fourth argument. One that has `check_row`, see
    rows.py, is shown every prompt before a run.
    """

    __call__: Callable[..., Scores]


class RewardError(RunFailed):
    """A reward raised, or returned something that is no score: `problem`, on the image at `index`.

    A reward that knows the image raises one itself; the image is then not looked for by calling the reward again.
    """

    def __init__(self, message: str, index: int = 0, problem: str = "") -> None:
        super().__init__(message)
        self.index, self.problem = index, problem or message


class RewardAway(RewardError):
    """Nobody answered: a server that cannot be reached, or fails whatever it is asked. It says nothing of the images.

    A reward of your own that asks a server raises it, so that `drop` does not look for the images to blame.
    """


def requires(*keys: str) -> Callable[[Reward], Reward]:
    """Decorator: the reward reads these keys of every prompt's metadata; a run without them is refused at its start."""

    def declare(reward: Reward) -> Reward:
        setattr(reward, "required_metadata", keys)  # noqa: B010 (a protocol has no such field)
        return reward

    return declare


def group_reward(reward: Reward) -> Reward:
    """Decorator: the reward compares the images of a prompt, and is called as `fn(..., metadata, group_index)`.

    All images of each prompt come in one call, wherever they were drawn; group_index (B,) int64 counts prompts from 0.
    """
    setattr(reward, "needs_group", True)  # noqa: B010
    return reward


def needs_group(reward: Reward) -> bool:
    """Whether a reward declares, by `group_reward` or an attribute `needs_group`, that it compares whole groups."""
    return bool(getattr(reward, "needs_group", False))


def reads_side(pixels: int) -> Callable[[Reward], Reward]:
    """Decorator: the reward reads square images of this side only; a run of another size is refused at its start."""

    def declare(reward: Reward) -> Reward:
        setattr(reward, "image_side", pixels)  # noqa: B010
        return reward

    return declare


def shares(look: Callable[[Tensor], Any]) -> Callable[[Reward], Reward]:
    """Decorator: the reward takes what `look(images)` returns as an argument `seen`, and must not change it.

    `look` is called once for a batch of images, and what it returned serves all rewards that share it. Called alone,
    a reward looks for itself.
    """

    def declare(reward: Reward) -> Reward:
        @wraps(reward)
        def looking(images: Tensor, *more: Any, seen: Any = None) -> Scores:
            return reward(images, *more, seen=look(images) if seen is None else seen)

        setattr(looking, "shared_look", look)  # noqa: B010
        return looking

    return declare


def check_metadata(
    reward: Reward, metadata: Sequence[Mapping[str, Any]], place: Callable[[int], str] = "prompt {}".format
) -> None:
    """Raises UserError if a prompt lacks metadata that the reward declares in `required_metadata`.

    place: names a row by its index
    """
    needed = getattr(reward, "required_metadata", ())
    for index, row in enumerate(metadata):
        missing = [key for key in needed if key not in row]
        if missing:
            raise UserError(
                f"the reward {title(reward)} reads {', '.join(needed)} from every prompt's metadata; {place(index)} "
                f"has no {', '.join(missing)}. Give the prompts as JSON lines with these keys, or choose another reward"
            )


def call_reward(
    name: str,
    reward: Reward,
    images: Tensor,
    prompts: list[str],
    metadata: list[dict[str, Any]],
    save_failures_to: Path | None = None,
    group_index: Tensor | None = None,
) -> dict[str, Tensor]:
    """Scores {name: (B,) fp32 on the CPU}. The first entry of a dict is the score called `name`, others `name/key`.

    group_index: (B,) int64, for a reward that needs groups.
    Raises RewardError, with the offending prompt and image written into the folder `save_failures_to`.
    """
    return call_on_batch(name, reward, Batch(images, prompts, metadata, group_index), save_failures_to)


def call_on_batch(name: str, reward: Reward, batch: Batch, save_failures_to: Path | None = None) -> dict[str, Tensor]:
    """The same of a batch."""
    check_metadata(reward, batch.metadata)
    try:
        return attempt(name, reward, batch)
    except Failed as failed:
        raise reward_error(name, reward, batch, failed, save_failures_to) from failed.__cause__
    except UserError as error:
        if save_failures_to is None:
            raise
        raise UserError(f"{error} ({_where(name, reward, batch, None, error, save_failures_to)})") from error


class Seen:
    """What looks at some images found, for all rewards that `shares` lets have it. Threads may ask it."""

    def __init__(self, images: Tensor) -> None:
        self._images, self._lock = images, Lock()
        self._found: dict[Callable[[Tensor], Any], Any] = {}

    def by(self, look: Callable[[Tensor], Any]) -> Any:
        """What `look(images)` returns; called only the first time."""
        with self._lock:
            if look not in self._found:
                self._found[look] = look(self._images)
                await_kernels()  # the others read it on streams of their own
            return self._found[look]


class Batch(NamedTuple):
    """What a reward is called with: the first three, and group_index if it needs groups. Rows are images."""

    images: Tensor
    prompts: list[str]
    metadata: list[dict[str, Any]]
    group_index: Tensor | None = None  # (B,) int64 from 0
    seen: Seen | None = None  # shared with other rewards' batches of these very images

    def copy(self) -> Batch:
        """One that a reward may change without anybody else's seeing it."""
        groups = None if self.group_index is None else self.group_index.clone()
        return Batch(self.images.clone(), [*self.prompts], deepcopy(self.metadata), groups)

    def rows(self, rows: list[int]) -> Batch:
        """The same with only some images, their groups numbered anew."""
        prompts, metadata = [self.prompts[row] for row in rows], [self.metadata[row] for row in rows]
        groups = None if self.group_index is None else self.group_index[rows].unique(return_inverse=True)[1]
        return Batch(self.images[rows], prompts, metadata, groups)

    def units(self) -> list[list[int]]:
        """Rows that can only be scored together: groups, or single images."""
        if self.group_index is None:
            return [[row] for row in range(len(self.prompts))]
        return [(self.group_index == group).nonzero().flatten().tolist() for group in self.group_index.unique()]


class Failed(Exception):
    """A call gave no scores, or gave `scores` that are not all finite.

    index: an image that is to blame, if known; away: no image is, for nobody looked at them
    """

    def __init__(
        self, problem: str, index: int | None = None, scores: dict[str, Tensor] | None = None, away: bool = False
    ) -> None:
        self.problem, self.index, self.scores, self.away = problem, index, scores, away


def attempt(name: str, reward: Reward, batch: Batch) -> dict[str, Tensor]:
    """One call; scores {name: (B,) fp32 on the CPU}, all finite. Raises Failed, and UserError as it is."""
    given = batch if _is_built_in(reward) else batch.copy()
    look = getattr(reward, "shared_look", None)
    try:
        with torch.no_grad():
            seen = {"seen": batch.seen.by(look)} if look and batch.seen else {}
            raw = reward(*given[: 4 if needs_group(reward) else 3], **seen)
    except UserError:
        raise
    except RewardAway as error:
        raise Failed(error.problem, 0, away=True) from error
    except RewardError as error:  # it knows which image
        if error.index not in range(len(batch.prompts)):
            problem = f"{error.problem} (on image {error.index}, and it was given {len(batch.prompts)}, from 0)"
            raise Failed(problem) from error
        raise Failed(error.problem, error.index) from error
    except SystemExit as error:  # it would end the run as if that had done its work, or a server
        raise Failed(f"called sys.exit({'' if error.code is None else repr(error.code)})") from error
    except Exception as error:
        raise Failed(f"raised {type(error).__name__}: {error}") from error
    entries = raw if isinstance(raw, Mapping) else {name: raw}
    if not entries:
        raise Failed("returned an empty dict")
    scores = {f"{name}/{key}" if place else name: values for place, (key, values) in enumerate(entries.items())}
    scores = {key: _numbers(key, values, len(batch.prompts)) for key, values in scores.items()}
    for key, values in scores.items():
        wrong = (~values.isfinite()).nonzero()
        if len(wrong):
            index = int(wrong[0])
            raise Failed(f"returned {values[index].item()} for {key}; scores must be finite", index, scores)
    return scores


def _is_built_in(reward: Reward) -> bool:
    """Ours change nothing that they are given, so they need no copy of it."""
    return str(getattr(reward, "__module__", "")).startswith("dgpo.")


def _numbers(key: str, values: Any, count: int) -> Tensor:
    """A copy: a reward may write its next scores into the buffer that it returned."""
    try:
        given = torch.as_tensor(values).detach()
        if given.layout != torch.strided or given.is_complex():
            raise TypeError(f"its layout is {given.layout}, its type {given.dtype}; scores are dense and real")
        scores, shape = given.float().cpu().clone(), tuple(given.shape)
    except Exception as error:  # an object of any library fails in its own way
        said = f"{type(error).__name__}: {error}"
        raise Failed(f"returned a {type(values).__name__} that is no list of numbers ({said})") from None
    if shape != (count,):
        raise Failed(f"returned shape {shape} for {key}; it must be one number an image, ({count},)")
    return scores


def reward_error(name: str, reward: Reward, batch: Batch, failed: Failed, folder: Path | None) -> RewardError:
    """The error that stops a run: what failed, and where its prompt and image are."""
    if failed.away:
        problem = f"the reward {name!r} {failed.problem}. It is not about the images: see to its server, and resume"
        return RewardAway(problem, 0, failed.problem)
    index = failed.index
    if index is None:
        index = _first_failing(reward, batch) if failed.__cause__ else 0
    return RewardError(
        f"the reward {name!r} {failed.problem}. {_where(name, reward, batch, index, failed.__cause__, folder)}. No "
        "failure is counted as a score: mend the reward and resume",
        index,
        failed.problem,
    )


def _where(
    name: str, reward: Reward, batch: Batch, index: int | None, cause: BaseException | None, folder: Path | None
) -> str:
    """Which image failed, and where it is kept. index: None where it is to be looked for."""
    index = _first_failing(reward, batch) if index is None else index
    try:
        kept = f"saved as {save_failure(name, index, batch, folder, cause)}" if folder else "not saved: no folder"
    except OSError as error:
        kept = f"not saved: {error}"
    return f"Image {index} of {len(batch.prompts)}, prompt {batch.prompts[index]!r}; prompt and image are {kept}"


def _first_failing(reward: Reward, batch: Batch) -> int:
    """The image on which a reward raises, found by halving the batch; an arbitrary one if it only sometimes raises."""
    units = batch.units()
    while len(units) > 1:
        first, second = units[: len(units) // 2], units[len(units) // 2 :]
        try:
            attempt("", reward, batch.rows([row for unit in first for row in unit]))
            units = second
        except (Failed, UserError):
            units = first
    return units[0][0]


def save_failure(name: str, index: int, batch: Batch, folder: Path, cause: BaseException | None = None) -> Path:
    """The image as PNG, and beside it prompt and metadata as JSON, and of what the reward raised the traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{index:05d}.png"
    to_pil(batch.images[index].nan_to_num()).save(path)
    note = {"reward": name, "prompt": batch.prompts[index], "metadata": batch.metadata[index]}
    path.with_suffix(".json").write_text(json.dumps(note, indent=2, default=str))
    if cause is not None:
        text = "".join(traceback.format_exception(type(cause), cause, cause.__traceback__))
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


def title(reward: Reward) -> str:
    """What a reward is called in messages."""
    return getattr(reward, "__name__", type(reward).__name__)
