"""`dgpo eval`: score a run's best weights, and what it began with, or a model, on the config's evaluation sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dgpo.commands.words import announce, flag, named_fields, take_flag
from dgpo.errors import UserError
from dgpo.utils.people import HUMAN

if TYPE_CHECKING:
    from dgpo.config import Config
    from dgpo.training.apply import Scores

USAGE = {"dgpo eval RUN|MODEL [--FIELD VALUE ...]": "score a run before and after training, or a model"}
FIELDS = (
    *("eval_prompts", "eval_images_per_prompt", "eval_images", "rewards", "eval_rewards", "reward_tags"),
    "reward_failures",
    *("seed", "device", "dtype", "resolution", "sampling"),
)
"""What an evaluation reads, and `dgpo eval --help` shows."""
READ = (
    *FIELDS,
    *("prompts", "offline", "model", "family", "finetune", "lora", "base_precision", "max_sequence_length"),
    *("distilled_guidance", "free_text_encoders", "prompt_cache", "offload", "averages"),
    *("vae_dtype", "vae_slicing", "vae_tiling"),
)
"""These too, which are seldom given."""
COUNTS = ("/missing", "/retries")
NOTES = ("/stderr", "/change", "/change_low", "/change_high")
"""Ends of the keys of metrics that are counts, and of those that stand in the row of their score."""
ABOUT = (
    "Score a run's best weights, with its own config, or a pipeline folder or id. What a run began with is scored\n"
    "too, with the same noise, and the paired changes are told; that takes as long again.\n"
    "- --no-compare: leave that out"
)


def run(given: list[str]) -> int:
    """Print a table of all scores, or of a run one of each set with its changes."""
    announce("eval", given)
    from dgpo.commands.configs import about, config_of, for_own_sets, take_source
    from dgpo.commands.parse import parse
    from dgpo.recipes import DEMOS

    usage = "dgpo eval RUN|MODEL"
    source, rest = take_source(given, usage)
    alone, rest = take_flag(rest, "--no-compare")
    base = for_own_sets(config_of(source), rest) if source in DEMOS else config_of(source)
    config = parse(base, rest, usage, about(ABOUT, given), shown=FIELDS)
    _refuse_settings_of_training(rest)
    _refuse_settings_of_rollouts(rest, config)
    from dgpo.run.console import shown_progress
    from dgpo.training import apply

    with shown_progress() as tell:
        scores = apply.evaluate(source, config, compare=not alone, tell=tell)
    shown = _by_set(scores.metrics, config.rewards)
    tables = _changes(scores, shown) if scores.before else [_table(scores.metrics, shown)]
    notes = [f"before: what the run began with, {config.model}"] if scores.before else []
    if HUMAN in config.rewards:
        notes.append("human: nobody is asked here; the win rate on the page for teaching says what people prefer")
    _print(scores.weights, tables, notes)
    return 0


def _refuse_settings_of_training(given: Iterable[str]) -> None:
    """Refuse a field that an evaluation does not read."""
    for name in named_fields(given):
        if name.partition(".")[0] not in READ:
            raise UserError(
                f"{flag(name)} is of training, and an evaluation does not read it; leave it out. dgpo eval --help "
                "shows what it reads"
            )


def _refuse_settings_of_rollouts(given: Iterable[str], config: Config) -> None:
    """Refuse a field that rollouts alone read: it would change nothing here."""
    named = named_fields(given)
    if "prompts" in named:
        raise UserError(
            "--prompts are those that a run trains on; evaluations draw the sets of --eval-prompts: give "
            "--eval-prompts test=FILE"
        )
    if "sampling.resolution" in named:
        raise UserError("--sampling.resolution is the size of rollouts' images; evaluations draw at --resolution")
    for name in ("guidance_scale", "num_inference_steps"):
        own = getattr(config.sampling, f"eval_{name}")
        if f"sampling.{name}" in named and own is not None:
            raise UserError(
                f"{flag(f'sampling.{name}')} is of rollouts, and evaluations take {flag(f'sampling.eval_{name}')}, "
                f"which is {own} here; give that one"
            )


def _print(weights: str, tables: Iterable[Any], notes: Iterable[str]) -> None:
    from rich.console import Console

    out = Console(markup=False, emoji=False, highlight=False)
    out.print(weights, soft_wrap=True)
    for table in tables:
        out.print(table)
    for note in notes:
        out.print(note, soft_wrap=True)


def _table(metrics: Mapping[str, float], names: Mapping[str, list[str]]) -> Any:
    """A row of each score, with a column of each evaluation set. names: of the scores of each set"""
    from rich.table import Column, Table

    table = Table("score", *(Column(name, justify="right") for name in names))
    for score in dict.fromkeys(score for scores in names.values() for score in scores):
        table.add_row(score, *(_cell(metrics, f"eval/{name}/{score}") for name in names))
    return table


def _changes(found: Scores, names: Mapping[str, list[str]]) -> Iterable[Any]:
    """Of each evaluation set a table: a row of each score, before, after, its change and the 95 % interval of that."""
    from rich.table import Column, Table

    for name, scores in names.items():
        heads = (name, "before", "after", "change", "95 %")
        table = Table(heads[0], *(Column(head, justify="right") for head in heads[1:]))
        for score in scores:
            key = f"eval/{name}/{score}"
            ends = [found.metrics.get(f"{key}/change_{end}") for end in ("low", "high")]
            between = " to ".join(f"{end:+.3f}" for end in ends if end is not None)
            values = [_number(metrics, key) for metrics in (found.before, found.metrics)]
            table.add_row(score, *values, _difference(found, key), between)
        yield table


def _by_set(metrics: Mapping[str, float], rewards: Mapping[str, float]) -> dict[str, list[str]]:
    """Evaluation set -> the names of its scores, their parts and counts, without those that repeat another."""
    from dgpo.run.metric_names import eval_names, without_repeats

    found = eval_names(metrics)
    repeated = {name.key for name in {*found} - {*without_repeats(found, rewards, metrics.get)}}
    names: dict[str, list[str]] = {}
    for key in metrics:
        if not key.endswith(NOTES) and key not in repeated:
            _, eval_set, score = key.split("/", 2)
            names.setdefault(eval_set, []).append(score)
    return names


def _difference(found: Scores, key: str) -> str:
    """The paired change, of a kind of prompts the difference of its means; empty where only one side has the score."""
    if key.endswith(COUNTS) or key not in found.before:
        return ""
    return f"{found.metrics.get(f'{key}/change', found.metrics[key] - found.before[key]):+.3f}"


def _number(metrics: Mapping[str, float], key: str) -> str:
    """0.512, 3 for a count, empty for a score that is not there."""
    return "" if key not in metrics else f"{metrics[key]:.0f}" if key.endswith(COUNTS) else f"{metrics[key]:.3f}"


def _cell(metrics: Mapping[str, float], key: str) -> str:
    """0.512 ± 0.031, where the error is known."""
    error = metrics.get(f"{key}/stderr")
    return _number(metrics, key) + ("" if error is None else f" ± {error:.3f}")
