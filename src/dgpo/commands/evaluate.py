"""`dgpo eval`: score a run's best weights, or a model, on the config's evaluation sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dgpo.commands.words import announce

USAGE = {"dgpo eval RUN|MODEL [--FIELD VALUE ...]": "score a run's best weights, or a model"}
FIELDS = (
    *("eval_prompts", "eval_images_per_prompt", "rewards", "eval_rewards", "reward_tags", "reward_failures"),
    *("seed", "device", "dtype", "resolution", "sampling"),
)
"""What an evaluation reads, and `dgpo eval --help` shows."""


def run(given: list[str]) -> int:
    """Print a table of all scores."""
    announce("eval", given)
    from dgpo.commands.configs import config_of, take_source
    from dgpo.commands.parse import parse

    usage = "dgpo eval RUN|MODEL"
    about = "Score a run's best weights, with its own config, or a pipeline folder or id."
    source, rest = take_source(given, usage)
    config = parse(config_of(source), rest, usage, about, shown=FIELDS)
    from dgpo.training import apply

    weights, metrics = apply.evaluate(source, config)
    _show(weights, metrics, config.eval_prompts)
    return 0


def _show(weights: str, metrics: Mapping[str, float], sets: Iterable[str]) -> None:
    """Print a row of each score, with a column of each evaluation set."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table("score", *(Column(name, justify="right") for name in sets))
    keys = [key for key in metrics if not key.endswith("/stderr")]
    for score in dict.fromkeys(key.split("/", 2)[2] for key in keys):
        table.add_row(score, *(_cell(metrics, f"eval/{name}/{score}") for name in sets))
    out = Console(markup=False, emoji=False, highlight=False)
    out.print(weights, soft_wrap=True)
    out.print(table)


def _cell(metrics: Mapping[str, float], key: str) -> str:
    """0.512 ± 0.031, where the error is known; 3 for a count; empty for a score that this set does not have."""
    if key not in metrics:
        return ""
    if key.endswith(("/missing", "/retries")):
        return f"{metrics[key]:.0f}"
    error = metrics.get(f"{key}/stderr")
    return f"{metrics[key]:.3f}" + ("" if error is None else f" ± {error:.3f}")
