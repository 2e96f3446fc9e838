"""One file per paper. `ALGORITHMS` maps the name that configs and the command line use to the paper's dataclass."""

from dgpo.algorithms.base import Algorithm
from dgpo.algorithms.dgpo import DGPO

__all__ = ["ALGORITHMS", "DGPO", "Algorithm"]

ALGORITHMS = {"dgpo": DGPO}
