"""The small pipelines that lie in this package, by name. Looking for them imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from dgpo.errors import UserError, did_you_mean

EMBEDDED = {
    name: Path(__file__).parents[1] / "worlds" / world / "assets" / name
    for name, world in (("tiny-sd3", "shapes"), ("tiny-sd3-words", "words"))
}


def model_path(name: str) -> Path:
    """The pipeline folder of an embedded model, which stock diffusers reads as well."""
    if name not in EMBEDDED:
        raise UserError(f"there is no embedded model {name!r}. {did_you_mean(name, EMBEDDED)}")
    return EMBEDDED[name]
