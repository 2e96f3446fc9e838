"""The command line: `dgpo COMMAND ...`. Bad input is one message and exit code 2, a run that failed exit code 1."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from dgpo import __version__
from dgpo.algorithms import ALGORITHMS, DGPO
from dgpo.config import MAY_CHANGE, Config, load_yaml
from dgpo.errors import RunFailed, UserError, did_you_mean
from dgpo.recipes import RECIPES, VARIANTS, recipe
from dgpo.run.interrupt import Interrupt
from dgpo.utils import fields

USAGE = f"""usage: dgpo COMMAND ...

  dgpo train [RECIPE|FILE.yaml] [--FIELD VALUE ...]   train a model; no argument: recipe tiny; --dry-run: try it first
  dgpo train RECIPE --algorithm NAME [...]            the same with another algorithm; --recipe NAME is RECIPE
  dgpo train --resume RUN [--iterations N ...]        continue a run that was stopped or killed
  dgpo plan [RECIPE|FILE.yaml] [--gpu NAME] [...]     what a run would take and whether it could start
  dgpo eval RUN|MODEL [--FIELD VALUE ...]             score a run's best weights, or a model
  dgpo sample RUN|MODEL --prompt TEXT                 draw pictures
  dgpo collect RUN|MODEL --groups N [...]             draw and score groups into a dataset
  dgpo train RECIPE --offline DATASET [...]           learn from such a dataset, or from your own pictures
  dgpo serve-reward NAME [--port N ...]               let others call a reward by its address, http://host:port
  dgpo report RUN                                     write RUN/report.html anew
  dgpo reward check NAME [...]                        call a reward and say whether it keeps its contract
  dgpo score FOLDER --rewards NAME[=WEIGHT] ...       score a folder of pictures with captions
  dgpo lora fix FILE OUT                              mend a LoRA that an earlier version exported
  dgpo bench [--only NAME ...] [...]                  compare the algorithms on the embedded task: hours
  dgpo --version

Recipes: {", ".join(RECIPES)}. All fields: dgpo train --help. Options of a command: dgpo COMMAND --help"""

HELP = ("-h", "--help")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Options of `dgpo sample`."""

    prompt: tuple[str, ...] = ()
    """One or more prompts."""
    images: int = 4
    """Pictures of each prompt."""
    seed: int = 0
    """Of the noise."""
    guidance_scale: float | None = None
    """None: as the run evaluates."""
    num_inference_steps: int | None = None
    """None: as the run evaluates."""
    out: Path = Path("samples.png")
    """The PNG to write; an existing one is not replaced."""


@dataclass(frozen=True, kw_only=True)
class RewardCheck:
    """Options of `dgpo reward check`."""

    images: Path | None = None
    """A folder of pictures, of which those of the first one's size are taken; None: renders of the embedded world."""
    prompts: str | None = None
    """Where prompts with what the reward reads come from, as in dgpo train; None: the pictures' captions, or the
    embedded world's prompts."""
    batch: int = 8
    """Images scored at once."""
    tolerance: float = 0.01
    """Scores are equal if they differ by so many deviations of the scores at hand."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class ScoreFolder:
    """Options of `dgpo score`."""

    rewards: tuple[str, ...] = ()
    """Names of built-in rewards, or package.module:name, each with =WEIGHT where it is not 1."""
    batch_size: int = 32
    """Images scored at once."""
    out: Path | None = None
    """The file to write; None: scores.jsonl in the folder. An existing one is not replaced."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 for a run that failed, 2 for bad input, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = dispatch(given)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"dgpo: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"dgpo: {error}", file=sys.stderr)
        return 1
    except _Said as said:
        return said.code
    except SystemExit as stop:
        print(f"dgpo: ended by a call of sys.exit({stop.code!r}) in {_caller(stop)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        print(f"dgpo: {str(stop) or 'stopped by Ctrl-C'}", file=sys.stderr)
        return 130


class _Said(Exception):
    """The parser has shown its help, or what it cannot parse."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def _caller(error: BaseException) -> str:
    """FILE, line N of what raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def dispatch(given: list[str]) -> int:
    command, rest = (given[0], given[1:]) if given else ("--help", [])
    if command in (*HELP, "help"):
        print(USAGE)
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        raise UserError(f"there is no command {command!r}. {did_you_mean(command, COMMANDS)}")
    return COMMANDS[command](rest)


def train(given: list[str]) -> int:
    """Train the model of a recipe or a config file, or continue a run."""
    with Interrupt():
        return _train(given)


def _train(given: list[str]) -> int:
    resume, rest = _take_option(given, "--resume", "a run folder: --resume runs/tiny")
    dry, rest = "--dry-run" in rest, [word for word in rest if word != "--dry-run"]
    config = _recipe_config(rest) if resume is None else _resumed_config(resume, rest)
    from dgpo.training.dry_run import dry_run
    from dgpo.training.loop import train as run_training

    if dry:
        lines = dry_run(config)
        print("\n".join(["", "Dry run done. What it went through:", *(f"  ok  {line}" for line in lines)]))
        return 0
    result = run_training(config, resume=resume is not None)
    print(f"Report: {result.run}/report.html")
    if result.interrupted:
        print(f"Stopped after iteration {result.iterations}. Continue with: dgpo train --resume {result.run}")
        return 130
    return 0


def plan(given: list[str]) -> int:
    """Say what a run would take, and whether it could start, before anything is loaded."""
    gpu, rest = _take_option(given, "--gpu", "the name of one: --gpu H100")
    processes, rest = _take_option(rest, "--processes", "their number: --processes 8")
    if processes is not None and not processes.isdecimal():
        raise UserError(f"--processes {processes} must be a number")
    config = _recipe_config(
        [word for word in rest if word != "--online"],
        "dgpo plan [RECIPE|FILE.yaml]",
        "Print what a run would do and take: parameters, memory by part, time on a GPU; then check what it needs.\n"
        "The exit code is 0 where all is fine and 2 where something is not. Takes what dgpo train takes, and\n"
        "- --gpu NAME: compare memory and time with this GPU; else memory with this machine\n"
        "- --processes N: images are spread over so many\n"
        "- --online: ask the hub where the local cache does not know",
    )
    from dgpo.plan import plan as print_plan

    return 0 if print_plan(config, gpu, int(processes or 1), "--online" in rest) else 2


def evaluate(given: list[str]) -> int:
    """Score a run's best weights, or a model, on the config's evaluation sets."""
    usage = "dgpo eval RUN|MODEL"
    source, rest = _source(given, usage)
    config = _parse(
        _config_of(source), rest, usage, "Score a run's best weights, with its own config, or a pipeline folder or id."
    )
    from dgpo.training.apply import evaluate_source

    evaluate_source(source, config)
    return 0


def sample(given: list[str]) -> int:
    """Draw pictures with a run's best weights, or a model."""
    usage = "dgpo sample RUN|MODEL --prompt TEXT"
    source, rest = _source(given, usage)
    o = _parse(Pictures(), rest, usage, "Draw pictures with a run's best weights, or a pipeline folder or id.")
    config = _config_of(source)
    own = config.sampling
    sampling = replace(
        own,
        eval_guidance_scale=own.eval_guidance_scale if o.guidance_scale is None else o.guidance_scale,
        eval_num_inference_steps=(
            own.eval_num_inference_steps if o.num_inference_steps is None else o.num_inference_steps
        ),
    )
    from dgpo.training.apply import sample_source

    print(sample_source(source, replace(config, sampling=sampling, seed=o.seed), o.prompt, o.images, o.out))
    return 0


def collect(given: list[str]) -> int:
    """Draw and score groups of images into a folder that `dgpo train --offline` learns from."""
    usage = "dgpo collect RUN|MODEL --groups N"
    source, rest = _source(given, usage)
    groups, rest = _take_option(rest, "--groups", "the number of groups: --groups 100")
    config = _parse(
        replace(_config_of(source), out=None),
        rest,
        usage,
        "Draw groups of images for the config's prompts, with a run's best weights or a model, score them with the\n"
        "config's rewards, and write them into a new folder.\n"
        "- --groups N: how many\n"
        "- --out FOLDER: where; None: the folder groups",
    )
    if groups is None or not groups.isdecimal():
        raise UserError(f"--groups {groups} must be a number; say how many groups to draw: {usage}")
    from dgpo.training.apply import collect_source

    print(collect_source(source, config, int(groups), Path(config.out or "groups")))
    return 0


def report(given: list[str]) -> int:
    """Write a run's report anew."""
    usage = "dgpo report RUN"
    if given and given[0] in HELP:
        print(f"usage: {usage}\n\nWrite RUN/report.html anew from the run's metrics and samples.")
        return 0
    source, rest = _source(given, usage)
    if rest:
        raise UserError(f"dgpo report takes one run folder; got also {' '.join(rest)}")
    from dgpo.report import write_report

    print(write_report(Path(source)))
    return 0


def reward(given: list[str]) -> int:
    """Put a reward to the test."""
    usage = "dgpo reward check NAME"
    command, *rest = given or ["check"]
    if command not in ("check", *HELP):
        raise UserError(f"there is no command 'reward {command}'; there is: {usage}")
    name, rest = _named(rest or list(HELP[:1]))
    o = _parse(
        RewardCheck(),
        rest,
        usage,
        "Call a reward, a built-in one or package.module:name, and say whether it keeps its contract: finite scores\n"
        "that depend on nothing but the image, its prompt and its metadata. The exit code is 0, or 1 if it does not.",
    )
    if not name:
        raise UserError(f"name a reward first: {usage}")
    from dgpo.rewards.tools import check_source

    return 0 if check_source(name, o.images, o.prompts, o.batch, o.tolerance, o.json) else 1


def score(given: list[str]) -> int:
    """Score a folder of pictures."""
    usage = "dgpo score FOLDER --rewards NAME[=WEIGHT] ..."
    folder, rest = _named(given or list(HELP[:1]))
    o = _parse(
        ScoreFolder(),
        rest,
        usage,
        "Score the pictures of a folder. A caption is NAME.txt beside NAME.png, or a line of metadata.jsonl or\n"
        "captions.jsonl with file_name, prompt (or text) and whatever metadata the rewards read.",
    )
    if not folder:
        raise UserError(f"name a folder of pictures first: {usage}")
    from dgpo.rewards.tools import score_folder

    print(score_folder(Path(folder), _weights(o.rewards), o.batch_size, o.out))
    return 0


def serve_reward(given: list[str]) -> int:
    """Serve a reward over HTTP."""
    from dgpo.rewards.http.serve import Serving, serve

    usage = "dgpo serve-reward NAME"
    name, rest = _named(given)
    options = _parse(
        Serving(),
        rest,
        usage,
        "Let runs, on this machine or on others, call a reward by the address that is printed:\n"
        "dgpo train --rewards http://HOST:PORT=1. NAME: a built-in reward, or package.module:name.",
    )
    if not name:
        raise UserError(f"name a reward first: {usage}")
    serve(name, options)
    return 0


def lora(given: list[str]) -> int:
    """Mend a LoRA of an earlier version."""
    usage = "dgpo lora fix FILE OUT"
    command, *rest = given or ["--help"]
    if command in HELP or any(word in HELP for word in rest):
        print(
            f"usage: {usage}\n\n"
            "Write a LoRA that an earlier version exported anew, so that every program draws it at its full strength:\n"
            "ComfyUI took it for half as strong (alpha 64 of rank 32), and read none of those for SD 1.5 and SDXL.\n"
            "- FILE: the safetensors file, or its folder: RUN/final\n"
            "- OUT: a new folder for what RUN/final now holds: docs/models.md says which file is for which program"
        )
        return 0
    if command != "fix":
        raise UserError(f"there is no command 'lora {command}'; there is: {usage}")
    if len(rest) != 2:
        raise UserError(f"dgpo lora fix takes a file and a new folder: {usage}")
    from dgpo.models.lora import mend

    for file in mend(Path(rest[0]), Path(rest[1])):
        print(file)
    return 0


def benchmark(given: list[str]) -> int:
    """Run what is missing of the benchmark and write its page."""
    from dgpo.bench import Plan, bench, measure_overhead, read_rows, write_page

    plan = _parse(
        Plan(),
        list(_split_lists(given, ("--only", "--seeds"))),
        "dgpo bench",
        "Train every algorithm on the embedded task from the same base model, and write a page that compares them.\n"
        "Runs that have their result are not run again; one that was stopped is continued.",
    )
    if plan.overhead:
        measure_overhead(
            recipe(plan.overhead_recipe), plan.overhead_rounds, Path(plan.out) / "results" / "overhead.json"
        )
        return 0
    finished = bench(plan)
    if finished or read_rows(plan.out):
        print(f"Page: {write_page(plan.out)}")
    return 0 if finished else 130


def _split_lists(given: Iterable[str], flags: Collection[str]) -> Iterator[str]:
    """A list may come as "a,b" as well as "a b"."""
    flag = ""
    for word in given:
        flag = word if word.startswith("--") else flag
        yield from word.split(",") if flag in flags else (word,)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "plan": plan,
    "eval": evaluate,
    "sample": sample,
    "collect": collect,
    "serve-reward": serve_reward,
    "report": report,
    "reward": reward,
    "score": score,
    "lora": lora,
    "bench": benchmark,
}


def _recipe_config(given: list[str], usage: str = "", about: str = "") -> Config:
    """The recipe or config file that is named first, with the fields given after it.

    usage, about: of the help, those of `dgpo train` where they are empty
    """
    base, file = recipe("tiny"), False
    named, given = _take_option(given, "--recipe", "the name of one: --recipe words")
    given = given if named is None else [named, *given]
    if given and not given[0].startswith("-"):
        name, *given = given
        file = name.endswith((".yaml", ".yml"))
        base = load_yaml(name) if file else recipe(name)
    if not file and any(word.split("=")[0] == "--lora.start" for word in given):
        # a LoRA to continue brings its own, and the recipe's are nobody's wish
        base = replace(base, lora=replace(base.lora, rank=None, alpha=None, target_modules=None))
    algorithm, given = _take_option(given, "--algorithm", "the name of one: --algorithm flow_grpo")
    if algorithm is not None:
        if algorithm not in ALGORITHMS:
            raise UserError(f"--algorithm {algorithm} is unknown. {did_you_mean(algorithm, ALGORITHMS)}")
        base = replace(base, algorithm=ALGORITHMS[algorithm]())
    return _parse(
        base,
        given,
        usage or "dgpo train [RECIPE|FILE.yaml]",
        about
        or "Train a model. Without an argument, with the recipe tiny, whose values are the defaults below.\n"
        f"- RECIPE, or --recipe RECIPE: {', '.join(RECIPES)}\n"
        f"- RECIPE@VARIANT of a published model: {', '.join(f'@{name}' for name in VARIANTS)}\n"
        "- --dry-run: only one iteration, as small as it can be, that goes through every part of the config\n"
        f"- --algorithm NAME: another algorithm with its own defaults, one of {', '.join(ALGORITHMS)}\n"
        "- FILE.yaml: the same fields, one a line; algorithm, sampling, optimizer and lora hold fields of their own\n"
        f"- --resume RUN: continue a run; only these may be given with it:\n  {', '.join(_may_change())}",
    )


def _resumed_config(run: str, given: list[str]) -> Config:
    """A run's own config with the fields given now; `runfolder.reopen` refuses those that may not change."""
    from dgpo.run.folder import stored_config

    stored = replace(stored_config(run), out=run)
    config = _parse(stored, given, "dgpo train --resume RUN", f"Fields that may change: {', '.join(_may_change())}.")
    if config.out != run:
        raise UserError(f"--resume continues a run in its own folder, so --out {config.out} cannot be given with it")
    return config


def _may_change() -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in MAY_CHANGE if name != "out"]


def _source(given: list[str], usage: str) -> tuple[str, list[str]]:
    """The run or model that is named first, and the rest; the embedded model stands in where only help is wanted."""
    source, rest = _named(given)
    if source:
        return source, rest
    if given and given[0] in HELP:
        return recipe("tiny").model, given
    raise UserError(f"name a run folder, a model folder or id first: {usage}")


def _named(given: list[str]) -> tuple[str, list[str]]:
    """What is named before the options, empty if nothing is, and the rest."""
    return (given[0], given[1:]) if given and not given[0].startswith("-") else ("", given)


def _config_of(source: str) -> Config:
    """A run's own config; for a model, the demo's with that model. Any number of solver steps goes with it."""
    stored = Path(source) / "config.yaml"
    config = load_yaml(stored) if stored.is_file() else replace(recipe("tiny"), model=source)
    # nothing trains here, so the sampler's steps need not be those that the algorithm asks for
    return replace(config, algorithm=DGPO(t_sampling="uniform"), split_updates=False)


def _weights(words: Iterable[str]) -> dict[str, float]:
    """NAME, which weighs 1, or NAME=WEIGHT."""
    found: dict[str, float] = {}
    for word in words:
        name, sign, weight = word.partition("=")
        if name in found:
            raise UserError(f"--rewards has {name!r} twice, and only one weight could count; give each name once")
        try:
            found[name] = float(weight) if sign else 1.0
        except ValueError:
            raise UserError(f"--rewards {word}: {weight!r} is no weight; give NAME or NAME=WEIGHT") from None
        if not name or not math.isfinite(found[name]):
            raise UserError(f"--rewards {word}: give NAME or NAME=WEIGHT, with a finite weight")
    return found


def _take_option(given: list[str], name: str, needs: str) -> tuple[str | None, list[str]]:
    """The value of one option, taken out of the command line; `needs` says what stands behind it."""
    for i, word in enumerate(given):
        if word == name and i + 1 < len(given):
            return given[i + 1], given[:i] + given[i + 2 :]
        if word == name:
            raise UserError(f"{name} needs {needs}")
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1], given[:i] + given[i + 1 :]
    return None, given


def _parse(default: T, given: list[str], usage: str, description: str) -> T:
    """`default` with the fields that are given. A UserError of a field comes out as itself, not in tyro's frame."""
    _require_once(given)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            value, unknown = tyro.cli(
                type(default),
                default=default,
                args=_switched_on(default, given),
                prog=usage,
                description=description,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
                registry=REGISTRY,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        cause = stop.__context__
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(said.getvalue())
        raise _Said(int(stop.code or 0)) from None
    for word in unknown:
        if word.startswith("--"):
            raise fields.unknown(default, word[2:].partition("=")[0].replace("-", "_"))
        raise UserError(f"{word!r} has no place here: {usage} [--FIELD VALUE ...]")
    fields.check_types(value)
    return value


def _require_once(given: Iterable[str]) -> None:
    """Refuse a flag that stands twice: of two values the first would be dropped without a word."""
    flags = Counter(word.partition("=")[0].replace("_", "-") for word in given if word.startswith("--"))
    twice = next((flag for flag, times in flags.items() if times > 1), None)
    if twice:
        raise UserError(f"{twice} is given twice; give it once, with all its values behind it")


def _switched_on(default: Any, given: list[str]) -> list[str]:
    """A yes-or-no flag without a value is a yes: `--overhead` is `--overhead True`."""
    switches = {f"--{field.name}".replace("_", "-") for field in dataclasses.fields(default) if field.type == "bool"}
    words = []
    for word, following in zip(given, [*given[1:], "--"]):
        bare = word.replace("_", "-") in switches and following.startswith("--")
        words += [word, "True"] if bare else [word]
    return words


REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
    """A dict with text keys is given whole, as NAME=VALUE words; tyro's own rule keeps the default's keys for ever.

    Where a value is a tuple of texts, it is NAME=TEXT,TEXT; where it is a weight, NAME alone weighs 1.
    """
    if info.type_origin is not dict:
        return None
    kind = get_args(info.type)[1]
    several = get_origin(kind) is tuple
    wanted = "=STR,STR" if several else "[=FLOAT]" if kind is float else f"={kind.__name__.upper()}"

    def pair(word: str) -> tuple[str, Any]:
        name, _, value = word.partition("=")
        try:
            if name and value:
                return name, tuple(value.split(",")) if several else kind(value)
        except ValueError:
            pass
        raise ValueError(f"{word!r} is not NAME{wanted}")

    def pairs(words: list[str]) -> dict[str, Any]:
        found = _weights(words) if kind is float else dict(map(pair, words))
        if len(found) < len(words):
            raise UserError(f"of {' '.join(words)} two have the same name, and only one could count; give each once")
        return found

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[NAME{wanted} ...]",
        instance_from_str=pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={','.join(v) if several else v}" for name, v in value.items()],
    )
