"""The head that turns an embedding into a score in LAION's aesthetic predictor and in ImageReward."""

from __future__ import annotations

from torch import nn


def predictor(width: int) -> nn.Module:
    """Linear layers width-1024-128-64-16-1 with their published names; places 1, 3 and 5 are dropout there."""
    sizes = {0: (width, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    linear = [nn.Linear(*sizes[index]) if index in sizes else nn.Identity() for index in range(8)]
    mlp = nn.Sequential()
    mlp.add_module("layers", nn.Sequential(*linear))
    return mlp
