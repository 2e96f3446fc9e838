"""`dgpo plan`: what a run would do and take, before anything is loaded.

Read `estimates.py` (memory and time), `checks.py` (what a run would refuse) and `page.py` (what is printed).
"""

from __future__ import annotations

from dataclasses import replace

from dgpo.config import Config
from dgpo.data.groups import GroupDataset
from dgpo.errors import UserError
from dgpo.plan.checks import read_prompts, run_checks
from dgpo.plan.estimates import STAND_IN, Estimate, estimate, runs_on_cpu
from dgpo.plan.fitting import chosen_offload, room
from dgpo.plan.gpus import GPU, find_gpu
from dgpo.plan.page import lines
from dgpo.training.setup import resolved

__all__ = ["plan"]


def plan(
    config: Config, gpu: str | None = None, processes: int = 1, online: bool = False, overwrite: bool = False
) -> bool:
    """Print the plan of a run, and return whether all checks are fine.

    gpu: the name of one, whose memory and speed the run is compared with; None: the device that the run would take
    online: ask the hub where the local cache does not know
    overwrite: as `train` takes it
    """
    if processes < 1:
        raise UserError(f"--processes {processes} would train nothing; give at least 1")
    named = None if gpu is None else find_gpu(gpu)
    try:
        config = config if config.offline is None else resolved(config, GroupDataset(config.offline))
        prompt = max(read_prompts(config, online).prompts, key=len)
    except UserError:  # which the checks repeat
        prompt = STAND_IN
    estimated = _placed(estimate(config, processes, runs_on_cpu(config, named), prompt), named)
    checks = run_checks(estimated, named, online, overwrite)
    for line in lines(estimated, checks, named):
        print(line)
    return all(check.ok for check in checks)


def _placed(estimated: Estimate, gpu: GPU | None) -> Estimate:
    """The estimate with an offload of auto decided, as a run on that GPU would; as it is where there is none."""
    config = estimated.config
    if config.offload != "auto" or estimated.on_cpu:
        return estimated
    try:
        available, where = room(gpu, on_cpu=False)
    except UserError:  # which the check of memory repeats
        return estimated
    offload, why = chosen_offload(estimated, available, where)
    if offload == "parts":
        config = replace(config, offload=offload)
        estimated = estimate(config, estimated.geometry.processes, False, estimated.prompt)
    estimated.offload = f"offload {offload}, {why}"
    return estimated
