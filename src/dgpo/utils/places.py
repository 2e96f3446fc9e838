"""Where a model lies: in this package, in a folder, or on the hub; and the run that a folder belongs to.

Looking for them imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

from dgpo.errors import NotHere, UserError, did_you_mean
from dgpo.utils.hub_id import is_hub_id

EMBEDDED = {
    name: Path(__file__).parents[1] / "worlds" / world / "assets" / name
    for name, world in (("tiny-sd3", "shapes"), ("tiny-sd3-words", "words"))
}
"""The small pipelines of the worlds."""
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth")
"""How files are called that hold a whole model, or a LoRA, for other programs."""


def model_path(name: str) -> Path:
    """The pipeline folder of an embedded model, which stock diffusers reads as well."""
    if name not in EMBEDDED:
        raise UserError(f"there is no embedded model {name!r}. {did_you_mean(name, EMBEDDED)}")
    return EMBEDDED[name]


def run_of(place: str | Path) -> Path | None:
    """The run folder that a place is, or lies in."""
    place = Path(place)
    files = ("config.yaml", "environment.json")
    return next((run for run in (place, *place.parents) if all((run / file).is_file() for file in files)), None)


def require_no_part(place: str | Path) -> None:
    """Refuse a part of a run, such as its final/ or a checkpoint, where the run is to be named."""
    run = run_of(place)
    if run is not None and run != Path(place) and Path(place).exists():
        raise UserError(f"{place} is a part of the run {run}; name the run: {run}")


def locate(path_or_id: str | Path, or_run: bool = False) -> str:
    """The folder of a pipeline, or the Hugging Face id it was given as. Looks at the disk only.

    or_run: whether a run folder would do as well, which the messages then say
    """
    name = str(path_or_id)
    folder = EMBEDDED.get(name, Path(name).expanduser())
    if (folder / "model_index.json").is_file():
        return str(folder)
    if folder.is_dir():
        if or_run:
            require_no_part(folder)
        elif run := run_of(folder):
            raise UserError(
                f"{folder} belongs to the run {run}, and a model is a pipeline folder or an id. To continue the run: "
                f"--resume {run}. To train its LoRA on in a new run: --lora.start {run / 'final'}, with the run's model"
            )
        raise UserError(
            f"{folder} holds no model_index.json, so it is no diffusers pipeline. Give the folder that "
            "`pipeline.save_pretrained` wrote, with model_index.json beside transformer/ and vae/."
            + (" It is no run folder either: it has no config.yaml." if or_run else "")
        )
    if folder.suffix in SINGLE_FILES and folder.is_file():
        raise UserError(
            f"{name} is one file, and a model is a diffusers folder. A whole checkpoint is converted once, in Python: "
            f'StableDiffusionXLPipeline.from_single_file("{name}").save_pretrained("{folder.stem}"), or with the class '
            f"of its family. A LoRA is trained on with --lora.start {name} and the --model that it was made for"
        )
    # "models/typo" beside a folder "models" is a path gone wrong, not an id: ask nobody on the network about it
    if isinstance(path_or_id, str) and is_hub_id(name) and not folder.parent.exists():
        return name
    where = "" if folder.is_absolute() else f" in the current one, {Path.cwd()}"
    raise NotHere(
        f"there is no folder {name!r}{where}. Give {'a run folder, ' if or_run else ''}a pipeline folder, "
        f"a Hugging Face id as owner/name, or an embedded model: {', '.join(EMBEDDED)}."
    )
