"""Recipes: functions that return a whole Config. The name on the command line is the function's."""

from __future__ import annotations

from collections.abc import Callable

from dgpo.config import Config
from dgpo.errors import UserError, did_you_mean
from dgpo.recipes.shapes import shapes_all, tiny

RECIPES: dict[str, Callable[[], Config]] = {recipe.__name__: recipe for recipe in (tiny, shapes_all)}


def recipe(name: str) -> Config:
    """The config of a recipe."""
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}. {did_you_mean(name, RECIPES)}")
    return RECIPES[name]()
