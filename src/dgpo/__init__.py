"""Direct Group Preference Optimization for text-to-image models.

import dgpo
config = dgpo.Config(model="tiny-sd3", prompts="shapes:train", rewards={"shapes": 1.0}, iterations=20, out="runs/first")
result = dgpo.train(config)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other. On cores that other work shares, that triples the time of a
# small network. It is read when torch is loaded, and what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from dgpo.algorithms import AWM, CRD, DGPO, RAM, Algorithm, DiffusionDPO, DiffusionNFT, FlowGRPO
    from dgpo.algorithms.registry import register_algorithm
    from dgpo.config import Config, LoraConfig, Optimizer, Sampling
    from dgpo.data.prompts import load_prompts
    from dgpo.errors import NonFiniteError, RunFailed, UserError
    from dgpo.models import load_model
    from dgpo.report.comparison import compare
    from dgpo.rewards.base import RewardAway, RewardError, group_reward, requires
    from dgpo.run.callbacks import Callback
    from dgpo.training.apply import collect, evaluate, sample
    from dgpo.training.loop import train
    from dgpo.training.running import Result
    from dgpo.utils.places import model_path

__all__ = [
    "AWM",
    "CRD",
    "DGPO",
    "RAM",
    "Algorithm",
    "Callback",
    "Config",
    "DiffusionDPO",
    "DiffusionNFT",
    "FlowGRPO",
    "LoraConfig",
    "NonFiniteError",
    "Optimizer",
    "Result",
    "RewardAway",
    "RewardError",
    "RunFailed",
    "Sampling",
    "UserError",
    "collect",
    "compare",
    "evaluate",
    "group_reward",
    "load_model",
    "load_prompts",
    "model_path",
    "register_algorithm",
    "requires",
    "sample",
    "train",
]

_HOMES = {
    "algorithms": ("AWM", "CRD", "DGPO", "RAM", "Algorithm", "DiffusionDPO", "DiffusionNFT", "FlowGRPO"),
    "algorithms.registry": ("register_algorithm",),
    "config": ("Config", "LoraConfig", "Optimizer", "Sampling"),
    "data.prompts": ("load_prompts",),
    "errors": ("NonFiniteError", "RunFailed", "UserError"),
    "models": ("load_model",),
    "report.comparison": ("compare",),
    "rewards.base": ("RewardAway", "RewardError", "group_reward", "requires"),
    "run.callbacks": ("Callback",),
    "training.apply": ("collect", "evaluate", "sample"),
    "training.loop": ("train",),
    "training.running": ("Result",),
    "utils.places": ("model_path",),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that `import dgpo` does not import torch."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
