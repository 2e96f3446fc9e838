"""The command line: `dgpo COMMAND ...`. Bad input is one message and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from dgpo import __version__
from dgpo.config import Config, load_yaml
from dgpo.errors import UserError, did_you_mean
from dgpo.recipes import RECIPES, recipe

USAGE = f"""usage: dgpo COMMAND ...

  dgpo train [RECIPE|FILE.yaml] [--FIELD VALUE ...]   train a model; no argument: recipe tiny
  dgpo train --resume RUN [--iterations N ...]        continue a run that was stopped or killed
  dgpo eval RUN|MODEL [--FIELD VALUE ...]             score a run's best weights, or a model
  dgpo sample RUN|MODEL --prompt TEXT                 draw pictures
  dgpo report RUN                                     write RUN/report.html anew
  dgpo --version

Recipes: {", ".join(RECIPES)}. All fields: dgpo train --help"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 for a run that failed, 2 for bad input, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return dispatch(given)
    except UserError as error:
        print(f"dgpo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def dispatch(given: list[str]) -> int:
    command, rest = (given[0], given[1:]) if given else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        raise UserError(f"there is no command {command!r}. {did_you_mean(command, COMMANDS)}")
    return COMMANDS[command](rest)


def train(given: list[str]) -> int:
    from dgpo.rewards.base import RewardError
    from dgpo.train import NonFiniteError
    from dgpo.train import train as run_training

    resume, rest = _take_option(given, "--resume")
    if resume is not None:
        from dgpo.runfolder import stored_config

        config = replace(
            _override(replace(stored_config(resume), out=resume), rest, "dgpo train --resume RUN"), out=resume
        )
    else:
        base, rest = _base(rest)
        config = _override(base, rest, "dgpo train [RECIPE|FILE.yaml]")
    try:
        result = run_training(config, resume=resume is not None)
    except (RewardError, NonFiniteError) as error:
        print(f"dgpo: {error}", file=sys.stderr)
        return 1
    if result.interrupted:
        print(f"Stopped after iteration {result.iterations}. Continue with: dgpo train --resume {result.run}")
        return 130
    print(f"Done: {result.run}/report.html")
    return 0


def evaluate(given: list[str]) -> int:
    from dgpo.tools import evaluate_source

    source, rest = _source(given, "dgpo eval RUN|MODEL")
    config = _override(_config_of(source), rest, "dgpo eval RUN|MODEL")
    evaluate_source(source, config)
    return 0


def sample(given: list[str]) -> int:
    from dgpo.tools import sample_source

    source, rest = _source(given, "dgpo sample RUN|MODEL --prompt TEXT")

    def options(
        prompt: Annotated[tuple[str, ...], tyro.conf.arg(help="one or more prompts")],
        images: Annotated[int, tyro.conf.arg(help="pictures of each prompt")] = 4,
        seed: Annotated[int, tyro.conf.arg(help="of the noise")] = 0,
        guidance_scale: Annotated[float | None, tyro.conf.arg(help="None: as the run evaluates")] = None,
        num_inference_steps: Annotated[int | None, tyro.conf.arg(help="None: as the run samples")] = None,
        out: Annotated[Path, tyro.conf.arg(help="the PNG to write; an existing one is not replaced")] = Path(
            "samples.png"
        ),
    ) -> Path:
        config = _config_of(source)
        sampling = replace(
            config.sampling,
            eval_guidance_scale=config.sampling.eval_guidance_scale if guidance_scale is None else guidance_scale,
            num_inference_steps=num_inference_steps or config.sampling.num_inference_steps,
        )
        return sample_source(source, replace(config, sampling=sampling, seed=seed), prompt, images, out)

    print(tyro.cli(options, args=rest, prog="dgpo sample RUN|MODEL"))
    return 0


def report(given: list[str]) -> int:
    from dgpo.report import write_report

    source, rest = _source(given, "dgpo report RUN")
    if rest:
        raise UserError(f"dgpo report takes one run folder; got also {' '.join(rest)}")
    print(write_report(Path(source)))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "report": report,
}


def _base(given: list[str]) -> tuple[Config, list[str]]:
    """The config to start from, and what is left of the command line."""
    if not given or given[0].startswith("-"):
        return recipe("tiny"), given
    name, rest = given[0], given[1:]
    return (load_yaml(name) if name.endswith((".yaml", ".yml")) else recipe(name)), rest


def _override(config: Config, given: list[str], usage: str) -> Config:
    """The config with the command line's fields; unknown ones are refused with the nearest name."""
    return tyro.cli(Config, default=config, args=given, prog=usage, config=(tyro.conf.FlagConversionOff,))


def _take_option(given: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of one option, taken out of the command line."""
    for i, word in enumerate(given):
        if word == name and i + 1 < len(given):
            return given[i + 1], given[:i] + given[i + 2 :]
        if word == name:
            raise UserError(f"{name} needs a run folder: {name} runs/tiny")
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1], given[:i] + given[i + 1 :]
    return None, given


def _source(given: list[str], usage: str) -> tuple[str, list[str]]:
    if not given or given[0].startswith("-"):
        raise UserError(f"name a run folder, a model folder or id first: {usage}")
    return given[0], given[1:]


def _config_of(source: str) -> Config:
    """A run's own config; for a model, the demo's with that model."""
    if (Path(source) / "config.yaml").is_file():
        return load_yaml(Path(source) / "config.yaml")
    return replace(recipe("tiny"), model=source)
