"""One file per paper. `ALGORITHMS` maps the name that configs and the command line use to the paper's dataclass."""

from dgpo.algorithms.awm import AWM
from dgpo.algorithms.base import Algorithm
from dgpo.algorithms.dgpo import DGPO
from dgpo.algorithms.diffusion_dpo import DiffusionDPO
from dgpo.algorithms.diffusion_nft import DiffusionNFT
from dgpo.algorithms.flow_grpo import FlowGRPO

__all__ = ["ALGORITHMS", "AWM", "DGPO", "Algorithm", "AnyAlgorithm", "DiffusionDPO", "DiffusionNFT", "FlowGRPO"]

AnyAlgorithm = DGPO | FlowGRPO | DiffusionNFT | AWM | DiffusionDPO
"""Those that a config can name."""

ALGORITHMS: dict[str, type[AnyAlgorithm]] = {
    "dgpo": DGPO,
    "flow_grpo": FlowGRPO,
    "diffusion_nft": DiffusionNFT,
    "awm": AWM,
    "diffusion_dpo": DiffusionDPO,
}
