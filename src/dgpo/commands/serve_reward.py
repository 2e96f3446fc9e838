"""`dgpo serve-reward`: let others call a reward by its address."""

from __future__ import annotations

from dgpo.commands.words import take_name
from dgpo.errors import UserError

USAGE = {"dgpo serve-reward NAME [--port N ...]": "let others call a reward by its address, http://host:port"}
HELP = (
    "Let runs, on this machine or on others, call a reward by the address that is printed:\n"
    "dgpo train --rewards http://HOST:PORT=1. NAME: a built-in reward, or package.module:name."
)


def run(given: list[str]) -> int:
    """Serve a reward over HTTP until a signal comes."""
    from dgpo.commands.parse import parse
    from dgpo.rewards.http.options import Serving

    usage = "dgpo serve-reward NAME"
    name, rest = take_name(given)
    options = parse(Serving(), rest, usage, HELP)
    if not name:
        raise UserError(f"name a reward first: {usage}")
    from dgpo.rewards.http.serve import serve

    serve(name, options)
    return 0
