"""The command line: `dgpo COMMAND ...`. Bad input is one message and exit code 2, a run that failed exit code 1.

Nothing here imports torch: a command's module is imported when it is asked for, and imports what it needs when it runs.
A signal that comes while that takes its seconds ends the command with a word.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module

from dgpo import __version__
from dgpo.commands.words import HELP, ParserExit
from dgpo.errors import RunFailed, UserError, did_you_mean
from dgpo.run.interrupt import STOPPED, Interrupt, Stopped

COMMANDS = {
    "train": "dgpo.commands.train",
    "init": "dgpo.commands.init",
    "plan": "dgpo.commands.plan",
    "eval": "dgpo.commands.evaluate",
    "sample": "dgpo.commands.sample",
    "collect": "dgpo.commands.collect",
    "serve-reward": "dgpo.commands.serve_reward",
    "report": "dgpo.commands.report",
    "compare": "dgpo.commands.compare",
    "studio": "dgpo.commands.studio",
    "teach": "dgpo.commands.teach",
    "picks": "dgpo.commands.picks",
    "reward": "dgpo.commands.reward_check",
    "score": "dgpo.commands.score",
    "model": "dgpo.commands.model",
    "lora": "dgpo.commands.lora",
    "bench": "dgpo.commands.bench",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 for a run that failed, 2 for bad input, 130 for a signal.

    75 for a training that a scheduler's signal ended, and that goes on where it is started again.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with Interrupt(advice=""):
            code = dispatch(given)
            sys.stdout.flush()
            return code
    except UserError as error:
        print(f"dgpo: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"dgpo: {error}", file=sys.stderr)
        return 1
    except ParserExit as end:
        return end.code
    except SystemExit as stop:
        print(f"dgpo: ended by a call of sys.exit({stop.code!r}) in {_caller(stop)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stop:
        print(f"dgpo: {str(stop) or 'stopped by Ctrl-C'}", file=sys.stderr)
        return stop.code if isinstance(stop, Stopped) else STOPPED


def dispatch(given: list[str]) -> int:
    """Run the command that is named first; without one, say what there is."""
    command, rest = (given[0], given[1:]) if given else ("--help", [])
    if command in (*HELP, "help"):
        print(usage())
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command not in COMMANDS:
        raise UserError(f"there is no command {command!r}. {did_you_mean(command, COMMANDS)}")
    return import_module(COMMANDS[command]).run(rest)


def usage() -> str:
    """List the commands in their own words, and the recipes."""
    from dgpo.recipes import RECIPES

    forms = {form: about for module in COMMANDS.values() for form, about in import_module(module).USAGE.items()}
    lines = [f"  {form:<52}{about}" for form, about in forms.items()]
    return "\n".join(
        [
            "usage: dgpo COMMAND ...",
            "",
            *lines,
            "  dgpo --version",
            "",
            f"Recipes: {', '.join(RECIPES)}. All fields: dgpo train --help. Options of a command: dgpo COMMAND --help",
        ]
    )


def _caller(error: BaseException) -> str:
    """FILE, line N of what raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"
