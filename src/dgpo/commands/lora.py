"""`dgpo lora fix`: mend a LoRA that an earlier version exported."""

from __future__ import annotations

from pathlib import Path

from dgpo.commands.words import HELP
from dgpo.errors import UserError

USAGE = {"dgpo lora fix FILE OUT": "mend a LoRA that an earlier version exported"}
ABOUT = (
    "Write a LoRA that an earlier version exported anew, so that every program draws it at its full strength:\n"
    "ComfyUI took it for half as strong (alpha 64 of rank 32), and read none of those for SD 1.5 and SDXL.\n"
    "- FILE: the safetensors file, or its folder: RUN/final\n"
    "- OUT: a new folder for what RUN/final now holds: docs/models.md says which file is for which program"
)


def run(given: list[str]) -> int:
    """Write the mended files, and print where they are."""
    usage = "dgpo lora fix FILE OUT"
    command, *rest = given or ["--help"]
    if command in HELP or any(word in HELP for word in rest):
        print(f"usage: {usage}\n\n{ABOUT}")
        return 0
    if command != "fix":
        raise UserError(f"there is no command 'lora {command}'; there is: {usage}")
    if len(rest) != 2:
        raise UserError(f"dgpo lora fix takes a file and a new folder: {usage}")
    from dgpo.models.lora import mend

    for file in mend(Path(rest[0]), Path(rest[1])):
        print(file)
    return 0
