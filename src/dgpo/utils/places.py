"""Where a model lies: in this package, in a folder, or on the hub. Looking for it imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from dgpo.errors import UserError, did_you_mean
from dgpo.utils.hub_id import is_hub_id

EMBEDDED = {
    name: Path(__file__).parents[1] / "worlds" / world / "assets" / name
    for name, world in (("tiny-sd3", "shapes"), ("tiny-sd3-words", "words"))
}
"""The small pipelines of the worlds."""


def model_path(name: str) -> Path:
    """The pipeline folder of an embedded model, which stock diffusers reads as well."""
    if name not in EMBEDDED:
        raise UserError(f"there is no embedded model {name!r}. {did_you_mean(name, EMBEDDED)}")
    return EMBEDDED[name]


def locate(path_or_id: str | Path) -> str:
    """The folder of a pipeline, or the Hugging Face id it was given as. Looks at the disk only."""
    name = str(path_or_id)
    folder = EMBEDDED.get(name, Path(name).expanduser())
    if (folder / "model_index.json").is_file():
        return str(folder)
    if folder.is_dir():
        raise UserError(
            f"{folder} holds no model_index.json, so it is no diffusers pipeline. Give the folder that "
            "`pipeline.save_pretrained` wrote, with model_index.json beside transformer/ and vae/."
        )
    # "runs/typo" beside a folder "runs" is a path gone wrong, not an id: ask nobody on the network about it
    if isinstance(path_or_id, str) and is_hub_id(name) and not folder.parent.exists():
        return name
    raise UserError(
        f"there is no folder {name!r}. Give a pipeline folder, a Hugging Face id as owner/name, "
        f"or an embedded model: {', '.join(EMBEDDED)}."
    )
