"""From the words of a command line to the `Config` they mean: a recipe, a file, a run's own, or a model's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dgpo.algorithms.base import Algorithm, require
from dgpo.algorithms.registry import known_algorithms, make_algorithm, stand_in
from dgpo.commands.parse import parse
from dgpo.commands.words import HELP, HELP_ALL, flag, named_fields, take_name, take_option, values_of
from dgpo.config import AUTO, AUTOMATIC, MAY_CHANGE, Config, load_yaml
from dgpo.config_checks import require_complete
from dgpo.errors import UserError, did_you_mean
from dgpo.recipes import DEMOS, fitting, recipe
from dgpo.rewards.registry import OF_WORLDS
from dgpo.utils.files import json_object, read_text
from dgpo.utils.imports import is_path, meant
from dgpo.utils.people import HUMAN
from dgpo.utils.places import locate


def recipe_config(given: list[str], usage: str, about: str) -> Config:
    """Read the recipe or config file that is named first, with the fields given after it. usage, about: of the help.

    Where none is named, it is the recipe that fits the model, or the defaults; without a model the demo.
    """
    file = False
    named, given = take_option(given, "--recipe", "the name of one: --recipe words")
    given = given if named is None else [named, *given]
    if not given or given[0].startswith("-"):
        base = _for_model(given)
    else:
        name, *given = given
        file = name.endswith((".yaml", ".yml"))
        if (own := Path(name, "config.yaml")).is_file():
            raise UserError(
                f"{name} is a run folder: take its config, {own}, with another --out, for what it would take or for a "
                f"new run like it; dgpo train --resume {name} continues it"
            )
        base = load_yaml(name) if file else recipe(name)
    return with_fields(base, given, usage, about, is_recipe=not file)


def _for_model(given: list[str]) -> Config:
    """The demo, or what fits the model that is given; one line says what was taken."""
    name = unnamed_recipe(given)
    taken = "the defaults; no recipe is for this model" if name is None else f"the recipe {name}, which fits the model"
    if name not in DEMOS.values():
        from dgpo.run.console import say

        say(f"no recipe is named: the values that are not given are those of {taken}")
    return Config() if name is None else recipe(name)


def with_fields(base: Config, given: list[str], usage: str, about: str, is_recipe: bool) -> Config:
    """Put the fields of the command line into a recipe, or into a file's config, which drops nothing of its own."""
    base = for_own_prompts(base, given) if is_recipe else base
    named = {word.split("=")[0] for word in given}
    if is_recipe and "--lora.start" in named:  # a LoRA to continue brings its own, and the recipe's are nobody's wish
        base = replace(base, lora=replace(base.lora, rank=None, alpha=None, target_modules=None))
    if is_recipe and "--offline" in named:  # there is nothing to draw again
        base = replace(base, redraw_groups=0)
    algorithm, given = take_option(given, "--algorithm", "the name of one: --algorithm flow_grpo")
    if algorithm is not None:
        if algorithm not in known_algorithms() and not is_path(algorithm):
            raise UserError(
                f"--algorithm {algorithm} is unknown. {did_you_mean(algorithm, known_algorithms())} Your own is given "
                f"as {meant(algorithm) or 'package.module:Class'}"
            )
        base = with_algorithm(base, make_algorithm(algorithm, {}, Config), is_recipe)
    config = parse(base, given, usage, about)
    _refuse_unread(config, named_fields(given))
    require_complete(config)
    return config


def _refuse_unread(config: Config, named: Collection[str]) -> None:
    """Refuse a field of the command line that another one leaves unread. What a recipe or a file has of them may stand.

    Not eval_rewards beside eval_every=0: `dgpo eval RUN` scores them, and a resumed run may evaluate.
    """
    own = ", ".join(flag(name) for name in named if name in ("prompts", "group_size"))
    require(
        config.offline is None or not own,
        f"{own} would change nothing: offline={config.offline!r} brings its own prompts and groups; leave it out. "
        "--eval-prompts says what is evaluated",
    )
    lora = ", ".join(flag(name) for name in named if name.startswith("lora."))
    require(
        config.finetune == "lora" or not lora,
        f"{lora} would change nothing: finetune={config.finetune!r} trains no LoRA; leave it out, or take "
        "finetune='lora'",
    )
    if "sampling.negative_prompt" in named:
        _require_guidance(config)
    human = ", ".join(flag(name) for name in named if name.startswith("human."))
    require(
        HUMAN in config.rewards or not human,
        f"{human} would change nothing: nobody is asked, as the rewards are {', '.join(config.rewards) or 'none'}; "
        "leave it out, or take dgpo teach, where the reward is human",
    )


def _require_guidance(config: Config) -> None:
    from dgpo.training.schedule import guidance_scales

    require(
        {*guidance_scales(config)} != {1.0},
        f"--sampling.negative-prompt {config.sampling.negative_prompt!r} would change nothing: no guidance leads away "
        "from it; leave it out, or raise sampling.guidance_scale",
    )


def with_algorithm(base: Config, algorithm: Algorithm, is_recipe: bool) -> Config:
    """Put another algorithm into a config.

    If it trains at more noise levels than a recipe's rollouts have, they take as many steps as its evaluations.
    """
    own, evaluated = base.sampling, base.sampling.eval_num_inference_steps
    try:
        algorithm.check_sampling(own.num_inference_steps)
    except UserError:
        if is_recipe and evaluated is not None:
            own = replace(own, num_inference_steps=evaluated)
    return replace(base, algorithm=algorithm, sampling=own)


def unnamed_recipe(given: list[str]) -> str | None:
    """The recipe where none is named: the one for the given model and rewards, or the demo's; None: there is none."""
    model, _ = take_option(given, "--model", "a folder, a Hugging Face id or an embedded model: --model tiny-sd3")
    rewards = {word.partition("=")[0] for word in values_of(given, "--rewards")}
    return "tiny" if model is None else fitting_recipe(model, rewards)


def fitting_recipe(model: str, rewards: Collection[str]) -> str | None:
    """The recipe for a model; of a pipeline on this machine its class is known, and nobody is asked for another's."""
    index = Path(locate(model), "model_index.json")
    family = json_object(read_text(index), str(index)).get("_class_name") if index.is_file() else None
    return fitting(model, family, rewards)


def for_own_prompts(base: Config, given: list[str]) -> Config:
    """Drop what a recipe evaluates where the command line brings prompts of its own, which are evaluated instead.

    Metrics of an embedded world stay with prompts of a world only: they know nothing of other pictures.
    """
    prompts = values_of(given, "--prompts")
    return replace(_watched(base, prompts), eval_prompts=AUTOMATIC.copy()) if prompts else base


def for_own_sets(base: Config, given: list[str]) -> Config:
    """Drop the metrics of an embedded world where `--eval-prompts` names sets of other prompts."""
    sets = values_of(given, "--eval-prompts")
    return _watched(base, [source.partition("=")[2] for source in sets]) if sets else base


def _watched(base: Config, sources: Iterable[str]) -> Config:
    of_world = all(source.startswith(("shapes:", "words:")) for source in sources)
    watched = tuple(name for name in base.eval_rewards if of_world or name not in OF_WORLDS)
    return replace(base, eval_rewards=watched)


def new_or_resumed(
    given: list[str], needs: str, usage: str, new: Callable[[list[str]], Config]
) -> tuple[Config, bool | Literal["auto"]]:
    """Take --resume out of the command line: the config of a run, and `resume` as `train` takes it.

    needs: what stands behind --resume; usage: of a run that goes on; new: reads the config where no run is named
    """
    run, rest = take_option(given, "--resume", needs)
    if run is None:
        return new(rest), False
    if run != AUTO:
        return resumed_config(run, rest, usage), True
    _require_no_run_called_auto()
    return new(rest), AUTO


def _require_no_run_called_auto() -> None:
    """Refuse `--resume auto` where it may mean a run folder."""
    if Path(AUTO, "config.yaml").is_file():
        raise UserError(
            f"--resume {AUTO} creates a run or continues the one in --out, and here is also a run folder of that name: "
            f"continue it with --resume ./{AUTO}, or start --resume {AUTO} in another folder"
        )


def resumed_config(run: str, given: list[str], usage: str) -> Config:
    """Read a run's own config with the fields given now; `run.folder.reopened` refuses those that may not change."""
    from dgpo.run.folder import stored_config

    stored = replace(stored_config(run), out=run)
    about = f"Fields that may change: {', '.join(flags_that_may_change())}."
    config = parse(stored, given, usage, about)
    if config.out != run:
        raise UserError(f"--resume continues a run in its own folder, so --out {config.out} cannot be given with it")
    return config


def flags_that_may_change() -> list[str]:
    """Name the options that may be given with --resume."""
    return [flag(name) for name in MAY_CHANGE if name != "out"]


def take_source(given: list[str], usage: str) -> tuple[str, list[str]]:
    """Take the run or model that is named first; none, "", where only help is wanted."""
    source, rest = take_name(given)
    if source:
        return source, rest
    if given and given[0] in (*HELP, HELP_ALL):
        return "", given
    raise UserError(f"name a run folder, a model folder or id first: {usage}")


def about(text: str, given: list[str]) -> str:
    """Say in the help of a command for a run or a model whose values the defaults are."""
    source, _ = take_name(given)
    whose = f"those of {source}" if source else "a model's. A run has its own: name it before --help to see them"
    return f"{text}\n\nThe defaults below are {whose}."


def config_of(source: str) -> Config:
    """Read a run's own config; for an embedded model its demo's, for another one, and for none, the defaults."""
    if not source:
        return Config(algorithm=stand_in())
    if source in DEMOS:
        return replace(recipe(DEMOS[source]), algorithm=stand_in())
    from dgpo.training.apply import config_of

    return config_of(source)
