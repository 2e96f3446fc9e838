"""From a reward's name to the reward: built in, `package.module:name`, or the address of a server."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from dgpo.errors import UserError, did_you_mean
from dgpo.rewards.base import Reward

BUILT_IN = {
    "shapes": "dgpo.rewards.builtin.shapes:shapes",
    "shapes_strict": "dgpo.rewards.builtin.shapes:shapes_strict",
    "crispness": "dgpo.rewards.builtin.shapes:crispness",
    "diversity": "dgpo.rewards.builtin.shapes:diversity",
    "pixel_diversity": "dgpo.rewards.builtin.diversity:PixelDiversity",
    "clip_diversity": "dgpo.rewards.builtin.diversity:ClipDiversity",
    "legibility": "dgpo.rewards.builtin.words:legibility",
    "words_diversity": "dgpo.rewards.builtin.words:words_diversity",
    "geneval": "dgpo.rewards.builtin.geneval:GenEval",
    "ocr": "dgpo.rewards.builtin.ocr:OCR",
    "vlm_judge": "dgpo.rewards.builtin.vlm_judge:VLMJudge",
    "pickscore": "dgpo.rewards.builtin.pickscore:PickScore",
    "clip": "dgpo.rewards.builtin.clip:ClipScore",
    "aesthetic": "dgpo.rewards.builtin.aesthetic:Aesthetic",
    "hpsv2": "dgpo.rewards.builtin.hpsv2:HPSv2",
    "imagereward": "dgpo.rewards.builtin.imagereward:ImageReward",
    "jpeg_compressibility": "dgpo.rewards.builtin.simple:jpeg_compressibility",
    "jpeg_incompressibility": "dgpo.rewards.builtin.simple:jpeg_incompressibility",
    "brightness": "dgpo.rewards.builtin.simple:brightness",
    "redness": "dgpo.rewards.builtin.simple:redness",
}

OF_WORLDS = ("shapes", "shapes_strict", "crispness", "diversity", "legibility", "words_diversity")
"""Those that judge the pictures of an embedded world, by its own rules."""


def resolve(name: str) -> Reward:
    """A built-in reward's name, `package.module:name` of a function, an object or a class without arguments, or the
    address of a server of rewards, `http://host:port`; several, with commas between, are a pool."""
    if name.startswith(("http://", "https://")):
        return _module(name, "dgpo.rewards.http.client").Remote(name)
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    if not (module_name and attribute):
        raise UserError(
            f"unknown reward {name!r}. {did_you_mean(name, BUILT_IN)} Your own is given as package.module:function"
        )
    module = _module(name, module_name)
    reward = getattr(module, attribute, None)
    if reward is None:
        where = getattr(module, "__file__", None) or "built into Python"
        raise UserError(f"reward {name!r}: module {module_name} has no {attribute!r} ({where})")
    if isinstance(reward, type):
        try:
            reward = reward()
        except TypeError as error:
            raise UserError(f"reward {name!r} is a class that cannot be made without arguments: {error}") from error
    if not callable(reward):
        raise UserError(
            f"reward {name!r} is a {type(reward).__name__}; a reward is called with (images, prompts, metadata)"
        )
    return reward


@contextmanager
def _working_folder() -> Iterator[None]:
    """Python looks into the working folder too, as a console script does not, and there last.

    Installed modules win: a `scipy.py` that happens to lie there is not run for the one that another module imports.
    """
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the module may have changed the path itself
            place = len(sys.path) - 1 - sys.path[::-1].index(folder)
            del sys.path[place]


def _module(name: str, module_name: str) -> Any:
    ours = module_name.partition(".")[0] == __name__.partition(".")[0]
    try:
        with nullcontext() if ours else _working_folder():
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"reward {name!r}: {module_name} needs the module {error.name}; install it") from error
        raise UserError(
            f"reward {name!r}: there is no module {module_name} here. Install it, or run from the folder that has it"
        ) from None
