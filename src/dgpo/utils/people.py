"""The reward that is a person."""

from collections.abc import Collection

HUMAN = "human"
"""Its name in `rewards`."""
WAITING = "waiting for answers"
"""The phase of a run in which only people can go on."""


def resuming(rewards: Collection[str], run: object) -> str:
    """The command that goes on with a run: one that people teach needs their page."""
    return f"dgpo {'teach' if HUMAN in rewards else 'train'} --resume {run}"
