"""Recipes: functions that return a whole Config. The name on the command line is the function's.

`NAME@24gb` and `NAME@8gpus` are a recipe of a published model, fitted to one 24 GB GPU or spread over eight.
"""

from __future__ import annotations

from collections.abc import Callable

from dgpo.config import Config
from dgpo.errors import UserError, did_you_mean
from dgpo.recipes import real, shapes, words

RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        *(shapes.tiny, shapes.shapes_all, words.words),
        *(real.sd35m_ocr, real.sd35m_geneval, real.sd35m_pickscore),
        *(real.sd35m_ocr_cfg_free, real.sd35m_geneval_cfg_free, real.sd35m_pickscore_cfg_free),
        *(real.sd35m_ocr_dynamic, real.sd35m_geneval_dynamic, real.sd35m_pickscore_dynamic),
        *(real.sd35l, real.flux_dev, real.qwen_image, real.z_image, real.sana, real.sdxl, real.sd15),
    )
}
VARIANTS: dict[str, Callable[[Config], Config]] = {"24gb": real.on_24_gb, "8gpus": real.on_8_gpus}


def recipe(name: str) -> Config:
    """The config of a recipe, or of `recipe@variant`."""
    base, at, variant = name.partition("@")
    if base not in RECIPES:
        raise UserError(f"there is no recipe {base!r}. {did_you_mean(base, RECIPES)}")
    if not at:
        return RECIPES[base]()
    if variant not in VARIANTS:
        raise UserError(f"there is no variant {variant!r} of a recipe. {did_you_mean(variant, VARIANTS)}")
    return VARIANTS[variant](RECIPES[base]())
