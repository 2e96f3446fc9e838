"""The reward that is a person."""

HUMAN = "human"
"""Its name in `rewards`."""
