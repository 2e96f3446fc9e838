"""`dgpo eval`: score a run's best weights, or a model, on the config's evaluation sets."""

from __future__ import annotations

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
    from dgpo.training.apply import evaluate_source

    evaluate_source(source, config)
    return 0
