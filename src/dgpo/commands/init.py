"""`dgpo init`: write a config file for a model and a reward, with a word on each field that one is likely to change."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo.commands.words import HELP, HELP_ALL, take_name, take_option, values_of
from dgpo.errors import UserError

if TYPE_CHECKING:
    from dgpo.config import Config

USAGE = {
    "dgpo init FILE.yaml [--model MODEL] [--rewards ...]": "write a config file with comments, to change and to train",
}
ABOUT = (
    "Write a config file for a model and a reward, with a line of comment on each field that one is likely to change.\n"
    "- --model MODEL, --rewards NAME..., --prompts FILE: what to train, on what; and any other field of dgpo train\n"
    "- --recipe NAME, or NAME@VARIANT: the recipe that the other values come from; without it the one that fits the\n"
    "  model and the rewards, the defaults where there is none, and the demo where no model is given\n"
    "An existing file is not replaced."
)
SHOWN = {
    "": (
        *("name", "out", "seed", "iterations", "model", "finetune", "resolution", "prompts", "num_groups"),
        *("group_size", "micro_batch_size", "rewards", "eval_rewards", "eval_prompts", "eval_images_per_prompt"),
        *("eval_every", "num_samples", "checkpoint_every", "keep_checkpoints"),
    ),
    "algorithm": ("beta", "kl_coef"),
    "sampling": ("num_inference_steps", "guidance_scale", "eval_num_inference_steps", "eval_guidance_scale"),
    "optimizer": ("lr",),
    "lora": ("rank", "alpha"),
}
"""What a file says whatever its value, by heading. Other fields stand in it where they differ from their defaults."""
WIDTH = 118
AUTOMATIC_COMMENT = (
    "auto: a tenth of the prompts, 4 to 32, is held out of training and evaluated; of fewer than 20 none is, and the\n"
    "# trained ones are evaluated. Others are added: {auto: prompts, NAME: SOURCE}, with SOURCE as in prompts."
)
"""Stands above `eval_prompts` where a run finds its own set."""


def run(given: list[str]) -> int:
    """Write the file, and print what to do with it."""
    usage = "dgpo init FILE.yaml"
    if given and {*HELP, HELP_ALL} & {*given}:
        print(f"usage: {usage} [--FIELD VALUE ...]\n\n{ABOUT}")
        return 0
    name, rest = take_name(given)
    if not name:
        raise UserError(f"name the file to write first: {usage}")
    _require_new(Path(name))
    config, origin = _config(Path(name), rest, usage)
    text = commented(config, name, origin)
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        with open(name, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {name}: {error}. Choose another file") from error
    print(f"Wrote {name}, with the values of {origin}. Next:")
    print("\n".join(f"  {command}" for command, _ in _steps(name)))
    return 0


def commented(config: Config, file: str, origin: str) -> str:
    """The text of a config file that reads as `config`. origin: where its values come from"""
    steps = _steps(file)
    width = max(len(command) for command, _ in steps)
    head = [
        f"# A run of dgpo, with the values of {origin}. Fields that are not here have their defaults:",
        "# dgpo train --help lists them all. null stands for what the comments call None.",
        "#",
        *(f"#   {command:<{width}}   {what}" for command, what in steps),
    ]
    return "\n".join([*head, *_lines(config)]) + "\n"


def _steps(file: str) -> list[tuple[str, str]]:
    """The commands that the file is for, and what each does."""
    name = shlex.quote(file)
    return [
        (f"dgpo plan {name}", "what it would take, and whether it could start"),
        (f"dgpo train {name} --dry-run", "try every part of it at the smallest size"),
        (f"dgpo train {name}", "train"),
    ]


def _config(file: Path, given: list[str], usage: str) -> tuple[Config, str]:
    """The config to write, and where its values come from in words."""
    from dgpo.commands.configs import unnamed_recipe, with_fields
    from dgpo.config import Config
    from dgpo.recipes import recipe

    chosen, given = take_option(given, "--recipe", "the name of one: --recipe words")
    chosen = chosen or unnamed_recipe(given)
    base = Config() if chosen is None else recipe(chosen)
    config = with_fields(dataclasses.replace(base, name=file.stem), given, usage, ABOUT, is_recipe=True)
    _require_known(config, given)
    return config, "the defaults" if chosen is None else f"the recipe {chosen}"


def _require_known(config: Config, given: list[str]) -> None:
    """Refuse a model, a reward or prompts that were mistyped; a recipe's own prompt files are still to be brought."""
    from dgpo.data.prompts import HUB, load_prompts, sources_of
    from dgpo.rewards.registry import require_known
    from dgpo.utils.places import locate

    locate(config.model)
    for name in (*config.rewards, *config.eval_rewards):
        require_known(name)
    if values_of(given, "--prompts"):
        sources = sources_of(config.prompts)
        here = [name for name in sources if not name.startswith(HUB)]
        if here or not sources:
            load_prompts(here or config.prompts)


def _require_new(path: Path) -> None:
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path} would be no config file that dgpo train knows; let its name end in .yaml")
    if path.exists():
        raise UserError(f"{path} exists and is not replaced; choose another name")


def _lines(config: Config) -> Iterator[str]:
    """The fields of a config in their own order, those of a heading indented below it."""
    for name, value, comment in _chosen(config, SHOWN[""]):
        if name not in SHOWN:
            yield from ("", f"# {comment}", *_yaml({name: value}))
        elif fields := [*_below(name, value, config)]:
            yield from ("", f"{name}:")
            for own, inner, about in fields:
                yield from (f"  {line}" for line in ([f"# {about}"] if about else []) + _yaml({own: inner}))


def _below(heading: str, value: Any, config: Config) -> Iterator[tuple[str, Any, str]]:
    """(field, value, comment) of what stands below a heading."""
    from dgpo.algorithms.registry import known_algorithms, path_of

    if heading == "algorithm":
        yield "name", path_of(value), f"{', '.join(known_algorithms())}, or package.module:Class of your own."
    if dataclasses.is_dataclass(value):
        yield from _chosen(value, () if heading == "lora" and config.finetune == "full" else SHOWN[heading])


def _chosen(instance: Any, shown: Collection[str]) -> Iterator[tuple[str, Any, str]]:
    """(field, value, comment) of each that is shown, holds fields of its own, or differs from its default."""
    from dgpo.config import has_automatic
    from dgpo.utils.docs import field_docs

    docs = field_docs(type(instance), WIDTH - 4)
    for field in dataclasses.fields(instance):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(instance, field.name)
        if field.init and (field.name in shown or field.name in SHOWN or value != default):
            automatic = field.name == "eval_prompts" and has_automatic(value)
            yield field.name, value, AUTOMATIC_COMMENT if automatic else docs.get(field.name, "")


def _yaml(value: dict[str, Any]) -> list[str]:
    from dgpo.utils.fields import plain
    from dgpo.utils.strict_yaml import dump

    style = None if isinstance(next(iter(value.values())), (dict, list, tuple)) else False  # None: lists in one line
    return dump(plain(value), default_flow_style=style, width=WIDTH, allow_unicode=True).splitlines()
