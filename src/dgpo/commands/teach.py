"""`dgpo teach`: a person teaches a model by picking pictures, on a page that the command opens."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from dgpo.commands.words import HELP, HELP_ALL, announce, take_flag, take_name, take_option
from dgpo.errors import Extra, UserError
from dgpo.run.interrupt import REQUEUE, STOPPED, Interrupt

if TYPE_CHECKING:
    from dgpo.config import Config
    from dgpo.studio.options import Options

USAGE = {
    "dgpo teach MODEL [--prompts FILE] [--FIELD VALUE ...]": "teach a model by picking pictures, in a browser",
    "dgpo teach --resume RUN": "go on with it",
}
ABOUT = (
    "Open a page that shows groups of pictures, and train the model on what you pick. It goes on until Ctrl-C, or\n"
    "Stop on the page of the run; everything that you picked is kept.\n"
    "- MODEL: tiny-sd3, a pipeline folder or a Hugging Face id\n"
    "- --prompts FILE: what is drawn; 20 prompts or more leave some to compare base and trained model on\n"
    "- --recipe NAME: whose settings of model, algorithm and sampler are taken; by default that of the model\n"
    "- --human.reuse N and its like: how people are asked; all fields of dgpo train may be given\n"
    "- --port N, --host ADDRESS, --no-browser: as in dgpo studio\n"
    "- --overwrite: where an old run has the folder, it is moved aside\n"
    "- --resume RUN: go on with a run; MODEL --out RUN --resume auto: create it, or go on with it where it is there"
)


def run(given: list[str]) -> int:
    """Train on what people pick."""
    announce("teach", given)
    with Interrupt():
        return _teach(given)


def _teach(given: list[str]) -> int:
    from dgpo.commands.configs import new_or_resumed

    overwrite, rest = take_flag(given, "--overwrite")
    options, rest = _page_options(rest)
    needs = "a run folder: --resume runs/tiny-sd3-human, or auto"
    config, resume = new_or_resumed(rest, needs, "dgpo teach --resume RUN", _new_config)
    _require_people(config)
    with Extra("studio", "dgpo teach"):
        import starlette  # noqa: F401 (before the model is loaded)
        import uvicorn  # noqa: F401
    from dgpo import distributed
    from dgpo.run.callbacks import Callback, Progress
    from dgpo.studio.beside import beside
    from dgpo.training.loop import train

    with ExitStack() as held:

        class Page(Callback):
            """Opens the page once there is a run folder."""

            def on_start(self, run: Progress) -> None:
                if distributed.is_main():
                    held.enter_context(beside(run.folder, options))

        result = train(config, callbacks=[Page()], resume=resume, overwrite=overwrite)
    if result.interrupted:
        print(
            f"Stopped after update {result.iterations}. Go on with: dgpo teach --resume {result.run}\n"
            f"Draw with what it learned: dgpo sample {result.run} --compare"
        )
        return REQUEUE if result.requeue else STOPPED
    return 0


def _new_config(given: list[str]) -> Config:
    from dataclasses import replace

    from dgpo.commands.configs import fitting_recipe, with_fields
    from dgpo.config import Config
    from dgpo.recipes import recipe
    from dgpo.recipes.teaching import for_teaching

    usage = "dgpo teach MODEL [--prompts FILE]"
    model, rest = take_name(given)
    asks_help = {*HELP, HELP_ALL} & {*given}
    if not model and not asks_help:
        raise UserError(f"name a model first, tiny-sd3 to try it: {usage}")
    chosen, rest = take_option(rest, "--recipe", "the name of one: --recipe sdxl")
    chosen = chosen or fitting_recipe(model or "tiny-sd3", {"human"})
    base = Config() if chosen is None else recipe(chosen)
    base = for_teaching(replace(base, model=model or base.model))
    return with_fields(base, rest, usage, ABOUT, is_recipe=True)


def _require_people(config: Config) -> None:
    from dgpo.utils.people import HUMAN

    if HUMAN not in config.rewards:
        raise UserError(
            f"rewards are {', '.join(config.rewards)}, and nobody is asked; give human a weight beside them "
            "(--rewards human=1 ...), or take dgpo train"
        )


def _page_options(given: list[str]) -> tuple[Options, list[str]]:
    """Take the studio's options out of the command line."""
    from dgpo.studio.options import Options

    host, rest = take_option(given, "--host", "an address: --host 0.0.0.0")
    port, rest = take_option(rest, "--port", "a number: --port 8300")
    no_browser, rest = take_flag(rest, "--no-browser")
    if port is not None and not port.isdecimal():
        raise UserError(f"--port {port} must be a number")
    default = Options()
    return Options(
        host=default.host if host is None else host,
        port=default.port if port is None else int(port),
        no_browser=no_browser,
    ), rest
