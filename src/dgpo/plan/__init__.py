"""`dgpo plan`: what a run would do and take, before anything is loaded.

Read `estimates.py` (memory and time), `checks.py` (what a run would refuse) and `page.py` (what is printed).
"""

from __future__ import annotations

from dgpo.config import Config
from dgpo.data.groups import GroupDataset
from dgpo.errors import UserError
from dgpo.plan.checks import read_prompts, run_checks
from dgpo.plan.estimates import estimate, runs_on_cpu
from dgpo.plan.gpus import find_gpu
from dgpo.plan.page import lines
from dgpo.training.setup import resolved

__all__ = ["plan"]

_STAND_IN = "a photo of " * 25
"""For prompts that cannot be read: a hundred tokens, where the text's length is that of the prompt."""


def plan(config: Config, gpu: str | None = None, processes: int = 1, online: bool = False) -> bool:
    """Print the plan of a run, and return whether all checks are fine.

    gpu: the name of one, whose memory and speed the run is compared with; None: the device that the run would take
    online: ask the hub where the local cache does not know
    """
    if processes < 1:
        raise UserError(f"--processes {processes} would train nothing; give at least 1")
    named = None if gpu is None else find_gpu(gpu)
    try:
        config = config if config.offline is None else resolved(config, GroupDataset(config.offline))
        prompt = max(read_prompts(config, online).prompts, key=len)
    except UserError:  # which the checks repeat
        prompt = _STAND_IN
    estimated = estimate(config, processes, runs_on_cpu(config, named), prompt)
    checks = run_checks(estimated, named, online)
    for line in lines(estimated, checks, named):
        print(line)
    return all(check.ok for check in checks)
