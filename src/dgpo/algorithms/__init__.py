"""One file per paper. registry.py maps the names that configs and the command line use to the papers' dataclasses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgpo.algorithms.awm import AWM
    from dgpo.algorithms.base import Algorithm
    from dgpo.algorithms.crd import CRD
    from dgpo.algorithms.dgpo import DGPO
    from dgpo.algorithms.diffusion_dpo import DiffusionDPO
    from dgpo.algorithms.diffusion_nft import DiffusionNFT
    from dgpo.algorithms.flow_grpo import FlowGRPO
    from dgpo.algorithms.ram import RAM

__all__ = ["AWM", "CRD", "DGPO", "RAM", "Algorithm", "DiffusionDPO", "DiffusionNFT", "FlowGRPO"]

_FILES = {
    "AWM": "awm",
    "Algorithm": "base",
    "CRD": "crd",
    "DGPO": "dgpo",
    "DiffusionDPO": "diffusion_dpo",
    "DiffusionNFT": "diffusion_nft",
    "FlowGRPO": "flow_grpo",
    "RAM": "ram",
}


def __getattr__(name: str) -> Any:
    """Import a class when it is first asked for, so that the registry's names cost no import of torch."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
