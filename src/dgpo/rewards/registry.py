"""From a reward's name to the reward: built in, `package.module:name`, or the address of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo.errors import UserError, did_you_mean
from dgpo.utils.imports import import_named, is_path, meant
from dgpo.utils.people import HUMAN

if TYPE_CHECKING:
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


def require_known(name: str) -> None:
    """Refuse a name that leads nowhere. A built-in reward is not imported: it may need packages that are not here."""
    if name in (*BUILT_IN, HUMAN) or name.startswith(("http://", "https://")):
        return
    if not is_path(name):
        if path := meant(name):
            raise UserError(f"unknown reward {name!r}. Your own is given as package.module:function, --rewards {path}")
        raise UserError(
            f"unknown reward {name!r}. {did_you_mean(name, [*BUILT_IN, HUMAN])} Your own is given as "
            f"package.module:function, --rewards my_rewards:{name}; in Python also as reward_functions={{{name!r}: "
            "FUNCTION} of dgpo.train, dgpo.evaluate and dgpo.collect, also for a run that was given one so"
        )
    import_named(name, f"reward {name!r}")


def resolve(name: str) -> Reward:
    """A built-in reward's name, `package.module:name` of a function, an object or a class without arguments, or the
    address of a server of rewards, `http://host:port`; several, with commas between, are a pool."""
    if name.startswith(("http://", "https://")):
        return import_named("dgpo.rewards.http.client:Remote", f"reward {name!r}")(name)
    if name == HUMAN:
        raise UserError(
            "the reward human is a person who is asked while a model trains: dgpo teach MODEL, or dgpo train FILE "
            "--rewards human=1. It cannot score pictures that are there already; let a person sort them, and learn "
            "from the ranks: dgpo train --offline (docs/offline.md)"
        )
    require_known(name)
    reward = import_named(BUILT_IN.get(name, name), f"reward {name!r}")
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
