"""Direct Group Preference Optimization for text-to-image models.

import dgpo
result = dgpo.train(dgpo.Config(iterations=20, out="runs/first"))
"""

__version__ = "0.1.0"

from dgpo.algorithms import AWM, DGPO, DiffusionDPO, DiffusionNFT, FlowGRPO
from dgpo.config import Config, LoraConfig, Optimizer, Sampling
from dgpo.data.prompts import load_prompts
from dgpo.errors import UserError
from dgpo.models import load_model
from dgpo.training.loop import Result, train

__all__ = [
    "AWM",
    "DGPO",
    "Config",
    "DiffusionDPO",
    "DiffusionNFT",
    "FlowGRPO",
    "LoraConfig",
    "Optimizer",
    "Result",
    "Sampling",
    "UserError",
    "load_model",
    "load_prompts",
    "train",
]
