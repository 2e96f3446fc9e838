"""What a reward is, how it is found by name and how it is called.

A reward is any callable `fn(images, prompts, metadata) -> scores`: images (B, 3, H, W) float in [0, 1] on the CPU, B
prompts, B dicts of metadata; scores are B finite numbers, higher is better, or a dict of such. Whatever goes wrong
stops the run with the prompt and the image kept: no failure ever turns into a score.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from dgpo.errors import UserError, did_you_mean

Scores = Any  # (B,) Tensor, ndarray or list of finite numbers, or a dict of those
BUILT_IN = {
    "shapes": "dgpo.rewards.shapes:shapes",
    "shapes_strict": "dgpo.rewards.shapes:shapes_strict",
    "crispness": "dgpo.rewards.shapes:crispness",
    "diversity": "dgpo.rewards.shapes:diversity",
    "legibility": "dgpo.rewards.words:legibility",
    "words_diversity": "dgpo.rewards.words:words_diversity",
    "geneval": "dgpo.rewards.geneval:GenEval",
    "ocr": "dgpo.rewards.ocr:OCR",
    "pickscore": "dgpo.rewards.pickscore:PickScore",
    "clip": "dgpo.rewards.clip:ClipScore",
    "aesthetic": "dgpo.rewards.aesthetic:Aesthetic",
    "hpsv2": "dgpo.rewards.hpsv2:HPSv2",
    "imagereward": "dgpo.rewards.imagereward:ImageReward",
    "jpeg_compressibility": "dgpo.rewards.simple:jpeg_compressibility",
    "jpeg_incompressibility": "dgpo.rewards.simple:jpeg_incompressibility",
    "brightness": "dgpo.rewards.simple:brightness",
    "redness": "dgpo.rewards.simple:redness",
}


class Reward(Protocol):
    """A function, or an object with `__call__`. It may declare `required_metadata`, see `requires`."""

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]], /) -> Scores: ...


class RewardError(RuntimeError):
    """A reward raised, or returned something that is no score."""


def requires(*keys: str) -> Callable[[Reward], Reward]:
    """Decorator: the reward reads these keys of every prompt's metadata; a run without them is refused at its start."""

    def declare(reward: Reward) -> Reward:
        setattr(reward, "required_metadata", keys)  # noqa: B010 (a protocol has no such field)
        return reward

    return declare


def resolve(name: str) -> Reward:
    """A built-in reward's name, or `package.module:name` of a function, an object or a class without arguments."""
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    if not (module_name and attribute):
        raise UserError(
            f"unknown reward {name!r}. {did_you_mean(name, BUILT_IN)} Your own is given as package.module:function"
        )
    found = getattr(_module(name, module_name), attribute, None)
    if found is None:
        raise UserError(f"reward {name!r}: module {module_name} has no {attribute!r}")
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise UserError(f"reward {name!r} is a class that cannot be made without arguments: {error}") from error
    if not callable(found):
        raise UserError(
            f"reward {name!r} is a {type(found).__name__}; a reward is called with (images, prompts, metadata)"
        )
    return found


def check_metadata(reward: Reward, metadata: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError if a prompt lacks metadata that the reward declares in `required_metadata`."""
    needed = getattr(reward, "required_metadata", ())
    for index, row in enumerate(metadata):
        missing = [key for key in needed if key not in row]
        if missing:
            raise UserError(
                f"the reward {_title(reward)} reads {', '.join(needed)} from every prompt's metadata; prompt {index} "
                f"has no {', '.join(missing)}. Give the prompts as JSON lines with these keys, or choose another reward"
            )


def call_reward(
    name: str,
    reward: Reward,
    images: Tensor,
    prompts: list[str],
    metadata: list[dict[str, Any]],
    save_failures_to: Path | None = None,
) -> dict[str, Tensor]:
    """Scores {name: (B,) fp32 on the CPU}. The first entry of a dict is the score called `name`, others `name/key`.

    Raises RewardError, with the offending prompt and image written into the folder `save_failures_to`.
    """
    check_metadata(reward, metadata)
    batch = _Batch(images, prompts, metadata)
    try:
        with torch.no_grad():
            raw = reward(*batch)
    except UserError:
        raise
    except Exception as error:
        problem = f"raised {type(error).__name__}: {error}"
        raise _failure(name, problem, _first_failing(reward, batch), batch, save_failures_to) from error
    entries = raw if isinstance(raw, Mapping) else {name: raw}
    if not entries:
        raise _failure(name, "returned an empty dict", 0, batch, save_failures_to)
    scores = {f"{name}/{key}" if place else name: values for place, (key, values) in enumerate(entries.items())}
    try:
        return {key: _checked(key, values, len(prompts)) for key, values in scores.items()}
    except _BadScores as error:
        raise _failure(name, error.problem, error.index, batch, save_failures_to) from None


class _Batch(NamedTuple):
    images: Tensor
    prompts: list[str]
    metadata: list[dict[str, Any]]


class _BadScores(Exception):
    def __init__(self, problem: str, index: int = 0) -> None:
        self.problem, self.index = problem, index


def _checked(key: str, values: Any, count: int) -> Tensor:
    try:
        scores = torch.as_tensor(values).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _BadScores(f"returned a {type(values).__name__} that is no list of numbers ({error})") from None
    if scores.shape != (count,):
        raise _BadScores(f"returned shape {tuple(scores.shape)} for {key}; it must be one number an image, ({count},)")
    wrong = (~scores.isfinite()).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise _BadScores(f"returned {scores[index].item()} for {key}; scores must be finite", index)
    return scores


def _first_failing(reward: Reward, batch: _Batch) -> int:
    """The image on which a reward raises, found by halving the batch; an arbitrary one if it only sometimes raises."""
    low, high = 0, len(batch.prompts)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            reward(batch.images[low:middle], batch.prompts[low:middle], batch.metadata[low:middle])
            low = middle
        except Exception:
            high = middle
    return low


def _failure(name: str, problem: str, index: int, batch: _Batch, folder: Path | None) -> RewardError:
    where = f"saved as {_save(name, index, batch, folder)}" if folder else "not saved: no folder was given"
    prompt, count = batch.prompts[index], len(batch.prompts)
    return RewardError(
        f"the reward {name!r} {problem}. Image {index} of {count}, prompt {prompt!r}; prompt and image are {where}. "
        "No failure is counted as a score: mend the reward and resume"
    )


def _save(name: str, index: int, batch: _Batch, folder: Path) -> Path:
    """The image as PNG, and beside it prompt and metadata as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{index:05d}.png"
    pixels = batch.images[index].detach().float().cpu().nan_to_num().clamp(0, 1).mul(255).round()
    Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(path)
    note = {"reward": name, "prompt": batch.prompts[index], "metadata": batch.metadata[index]}
    path.with_suffix(".json").write_text(json.dumps(note, indent=2, default=str))
    return path


def _module(name: str, module_name: str) -> Any:
    if "" not in sys.path:  # a console script does not search the working folder
        sys.path.insert(0, "")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"reward {name!r}: {module_name} needs the module {error.name}; install it") from error
        raise UserError(
            f"reward {name!r}: there is no module {module_name} here. Install it, or run from the folder that has it"
        ) from None


def _title(reward: Reward) -> str:
    return getattr(reward, "__name__", type(reward).__name__)
