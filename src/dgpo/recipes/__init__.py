"""Recipes: functions that return a whole Config. The name on the command line is the function's.

`NAME@24gb`, `NAME@80gb` and `NAME@8gpus` are a recipe of a published model, fitted to one GPU of that memory or spread
over eight. Listing the names imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dgpo.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from dgpo.config import Config

_REAL = (
    *("sd35m_ocr", "sd35m_geneval", "sd35m_pickscore"),
    *("sd35m_ocr_cfg_free", "sd35m_geneval_cfg_free", "sd35m_pickscore_cfg_free"),
    *("sd35m_ocr_dynamic", "sd35m_geneval_dynamic", "sd35m_pickscore_dynamic"),
    *("sd35l", "flux_dev", "flux2_klein", "qwen_image", "z_image", "sana", "sdxl", "sd15"),
)
RECIPES = {
    "tiny": "dgpo.recipes.shapes:tiny",
    "shapes_all": "dgpo.recipes.shapes:shapes_all",
    "words": "dgpo.recipes.words:words",
    **{name: f"dgpo.recipes.real:{name}" for name in _REAL},
}
VARIANTS = {
    "24gb": "dgpo.recipes.real:on_24_gb",
    "80gb": "dgpo.recipes.real:on_80_gb",
    "8gpus": "dgpo.recipes.real:on_8_gpus",
}
DEMOS = {"tiny-sd3": "tiny", "tiny-sd3-words": "words"}
"""The embedded models' own recipes."""


def recipe(name: str) -> Config:
    """The config of a recipe, or of `recipe@variant`."""
    base, at, variant = name.partition("@")
    if base not in RECIPES:
        raise UserError(f"there is no recipe {base!r}. {did_you_mean(base, RECIPES)}")
    if not at:
        return _function(RECIPES[base])()
    if variant not in VARIANTS:
        raise UserError(f"there is no variant {variant!r} of a recipe. {did_you_mean(variant, VARIANTS)}")
    return _function(VARIANTS[variant])(_function(RECIPES[base])())


def fitting(model: str, family: str | None, rewards: Collection[str]) -> str | None:
    """The name of the recipe for a model: the one for these rewards, else the model's first; None: there is none.

    family: the class of a pipeline that is on this machine, of whose family a recipe may be, or None
    """
    configs = {name: recipe(name) for name in RECIPES}
    own = [name for name, config in configs.items() if config.model == model]
    if not own and family in _OF_FAMILY:
        own = [name for name, config in configs.items() if config.model == configs[_OF_FAMILY[family]].model]
    return next((name for name in own if {*configs[name].rewards} == {*rewards}), own[0] if own else None)


_OF_FAMILY = {
    "StableDiffusion3Pipeline": "sd35m_ocr",
    "FluxPipeline": "flux_dev",
    "Flux2KleinPipeline": "flux2_klein",
    "QwenImagePipeline": "qwen_image",
    "ZImagePipeline": "z_image",
    "SanaPipeline": "sana",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionPipeline": "sd15",
}
"""A recipe of each family that has one, by the pipeline's class, as in `dgpo.models.FAMILIES`."""


def _function(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
