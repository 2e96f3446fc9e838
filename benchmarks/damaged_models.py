"""Every file of a saved pipeline damaged in every way: does it load to the same pictures, or end in one message?

    python benchmarks/damaged_models.py --out benchmarks/results/faults/damaged_models.json

Tiny pipelines of all eight families, saved by the real classes, and SD3's once more with its weights in shards. Each
case copies the folder, damages one file, loads it, draws two guided pictures and compares them with those of the
undamaged folder. Wrong are cases that crash with another error than UserError, and cases that draw other pictures.
What no loader can see is left out: another value in the place of a right one, and a setting that is missing where the
library's default stands in, as in files of its earlier versions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from damage import cases, drawn, outcome
from tiny import tiny_sd3
from tiny_flux import tiny_flux
from tiny_qwen_image import tiny_qwen_image
from tiny_sana import tiny_sana
from tiny_vp import tiny_pixart, tiny_sd, tiny_sdxl
from tiny_z_image import tiny_z_image

from dgpo.run.folder import conditions

PIPELINES: dict[str, Any] = {
    "sd3": tiny_sd3,
    "sd3 in shards": tiny_sd3,
    "flux": tiny_flux,
    "qwen_image": tiny_qwen_image,
    "z_image": tiny_z_image,
    "sana": tiny_sana,
    "sd15": tiny_sd,
    "sdxl": tiny_sdxl,
    "pixart": tiny_pixart,
}


def measure(name: str, folder: Path) -> tuple[Counter[str], list[str]]:
    """How many cases ended in which way, and those that ended wrong."""
    pipeline, saved = PIPELINES[name](), folder / "whole"
    pipeline.save_pretrained(saved, **({"max_shard_size": "20KB"} if "shards" in name else {}))
    whole = drawn(saved)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for case in cases(saved):
        how, said = outcome(saved, case, folder / "damaged", whole)
        counts[how] += 1
        if how in ("crashed", "differs"):
            wrong.append(f"{case.file} {case.fault}: {how} {said}")
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the counts")
    out = parser.parse_args().out
    found: dict[str, Any] = {}
    for name in PIPELINES:
        with tempfile.TemporaryDirectory() as folder:
            counts, wrong = measure(name, Path(folder))
        found[name] = {"cases": counts.total(), **{how: counts[how] for how in ("refused", "same")}, "wrong": wrong}
        print(name, found[name], flush=True)
    total = {key: sum(one[key] for one in found.values()) for key in ("cases", "refused", "same")}
    total["wrong"] = sum(len(one["wrong"]) for one in found.values())
    print("in all", total)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"conditions": conditions(), "total": total, "pipelines": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
