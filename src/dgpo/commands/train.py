"""`dgpo train`: train the model of a recipe or a config file, or continue a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo.commands.words import announce, take_flag
from dgpo.run.interrupt import REQUEUE, STOPPED, Interrupt

if TYPE_CHECKING:
    from dgpo.config import Config

USAGE = {
    "dgpo train [RECIPE|FILE.yaml] [--FIELD VALUE ...]": "train a model; no argument: recipe tiny; "
    "--dry-run: try it first",
    "dgpo train RECIPE --algorithm NAME [...]": "the same with another algorithm; --recipe NAME is RECIPE",
    "dgpo train RECIPE --offline DATASET [...]": "learn from groups of `dgpo collect`, or from your own pictures",
    "dgpo train --resume RUN [--iterations N ...]": "continue a run that was stopped or killed",
    "dgpo train RECIPE --out RUN --resume auto [...]": "create the run or continue it, for a command that is repeated",
    "dgpo train ... --overwrite": "start anew in the folder of an old run, which is moved aside",
}


def run(given: list[str]) -> int:
    """Train; from here on a signal says that nothing is lost."""
    announce("train", given)
    with Interrupt():
        return _train(given)


def _train(given: list[str]) -> int:
    from dgpo.commands.configs import new_or_resumed

    dry, rest = take_flag(given, "--dry-run")
    overwrite, rest = take_flag(rest, "--overwrite")
    needs, usage = "a run folder: --resume runs/tiny, or auto", "dgpo train --resume RUN"
    config, resume = new_or_resumed(rest, needs, usage, _new_config)
    if dry:
        from dgpo.training.dry_run import dry_run

        lines = dry_run(config, bool(resume), overwrite)
        print("\n".join(["", "Dry run done. What it went through:", *(f"  ok  {line}" for line in lines)]))
        return 0
    from dgpo.training.loop import train

    result = train(config, resume=resume, overwrite=overwrite)
    if result.interrupted:
        print(f"Stopped after iteration {result.iterations}. Continue with: dgpo train --resume {result.run}")
        return REQUEUE if result.requeue else STOPPED
    return 0


def _new_config(given: list[str]) -> Config:
    from dgpo.commands.configs import recipe_config

    return recipe_config(given, "dgpo train [RECIPE|FILE.yaml]", _help())


def _help() -> str:
    from dgpo.algorithms.registry import known_algorithms
    from dgpo.commands.configs import flags_that_may_change
    from dgpo.recipes import RECIPES, VARIANTS

    return (
        "Train a model. Without an argument, with the recipe tiny, whose values are the defaults below.\n"
        f"- RECIPE, or --recipe RECIPE: {', '.join(RECIPES)}\n"
        f"- RECIPE@VARIANT of a published model: {', '.join(f'@{name}' for name in VARIANTS)}\n"
        "- --dry-run: only one iteration, as small as it can be, that goes through every part of the config\n"
        f"- --algorithm NAME: another algorithm with its own defaults, one of {', '.join(known_algorithms())},\n"
        "  or package.module:Class of your own\n"
        "- FILE.yaml: the same fields, one a line; algorithm, sampling, optimizer and lora hold fields of their own\n"
        "- --overwrite: where an old run has the folder, it is moved aside to FOLDER-1 or the next free number\n"
        "- --resume auto: create the run in --out, or continue it where it is there, or say that it has finished\n"
        f"- --resume RUN: continue a run; only these may be given with it:\n  {', '.join(flags_that_may_change())}"
    )
