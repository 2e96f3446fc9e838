"""`dgpo plan`: say what a run would take and whether it could start, before anything is loaded."""

from __future__ import annotations

from dgpo.commands.words import announce, take_flag, take_option
from dgpo.errors import UserError

USAGE = {"dgpo plan [RECIPE|FILE.yaml] [--gpu NAME] [...]": "what a run would take and whether it could start"}
HELP = (
    "Print what a run would do and take: parameters, memory by part, with --gpu time; then check what it needs.\n"
    "The exit code is 0 where all is fine and 2 where something is not. Takes what dgpo train takes, and\n"
    "- --gpu NAME: compare memory and time with this GPU; else memory with this machine\n"
    "- --processes N: images are spread over so many\n"
    "- --online: ask the hub where the local cache does not know\n"
    "- --overwrite: as dgpo train takes it"
)


def run(given: list[str]) -> int:
    """Print the plan; 2 where the run could not start."""
    announce("plan", given)
    from dgpo.commands.configs import recipe_config

    gpu, rest = take_option(given, "--gpu", "the name of one: --gpu H100")
    processes, rest = take_option(rest, "--processes", "their number: --processes 8")
    if processes is not None and not processes.isdecimal():
        raise UserError(f"--processes {processes} must be a number")
    online, rest = take_flag(rest, "--online")
    overwrite, rest = take_flag(rest, "--overwrite")
    config = recipe_config(rest, "dgpo plan [RECIPE|FILE.yaml]", HELP)
    from dgpo.plan import plan

    return 0 if plan(config, gpu, int(processes or 1), online, overwrite) else 2
