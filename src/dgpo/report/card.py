"""The model card beside exported weights: what they are, how they were trained, what they scored, how to load them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCardData
from matplotlib.figure import Figure

from dgpo.models.lora import KOHYA, PEFT, STOCK
from dgpo.report.changes import KINDS, Change, changes, headline
from dgpo.report.grids import Samples, read_samples
from dgpo.report.log import Log, read_log, read_mapping
from dgpo.report.templates import template
from dgpo.report.weights import of_these_weights
from dgpo.report.words import number
from dgpo.utils.hub_id import is_hub_id
from dgpo.utils.places import EMBEDDED
from dgpo.utils.strict_yaml import dump

FIGURE, SAMPLES = "curve.png", "samples.png"
LORA_FILES = {
    STOCK: "diffusers; ComfyUI, for SD3, FLUX, Qwen-Image and Z-Image",
    KOHYA: "ComfyUI and stable-diffusion-webui (A1111), which name the layers of SD 1.5, SD 2 and SDXL otherwise",
    PEFT: "PEFT, with adapter_config.json beside it; ComfyUI, for PixArt",
}
"""Which program reads which file of a LoRA; nothing is said of a file that is not there."""


class StockUse(NamedTuple):
    """What stock diffusers is told to draw as the run's evaluations do, but for the solver."""

    absent: tuple[str, ...] = ()  # parts of the pipeline that it has to be told are not there
    arguments: Mapping[str, Any] = MappingProxyType({})  # of a call, beside the prompt


def write_card(run: Path, folder: Path, use: StockUse | None = None, iteration: int | None = None) -> Path:
    """Write `folder`/README.md, with a curve and the last sample grid where the run has them; returns its path.

    iteration: after which the weights are; None: the last
    """
    config = read_mapping(run / "config.yaml")
    stock, samples = use or StockUse(), read_samples(run)
    whole = read_log(run / "metrics.jsonl")
    log = whole if iteration is None else whole.until(iteration)
    scores = [change for change in changes(log, config) if not change.name.tag]
    card = folder / "README.md"
    card.write_text(
        template("report", "card.md.j2").render(
            front=_front_matter(config),
            network="unet" if (folder / "unet").is_dir() else "transformer",
            config=config,
            online=config.get("offline") is None,
            dump=dump(config),
            algorithm=config["algorithm"]["name"],
            license=_license(config),
            lora=config["finetune"] == "lora",
            embedded=config["model"] if config["model"] in EMBEDDED else None,
            base=_base(config),
            here=config["push_to_hub"] or ".",
            bf16=config["dtype"] == "bf16",
            absent=stock.absent,
            prompt=_code(samples.prompts[0] if samples else "a red cat"),
            arguments={name: _code(value) for name, value in stock.arguments.items()},
            files=[(name, use) for name, use in LORA_FILES.items() if (folder / name).is_file()],
            peft=(folder / PEFT).is_file(),
            scores=[_row(change) for change in scores],
            standing=of_these_weights(whole, log, run),
            trained=log.trained(),
            elapsed=log.elapsed(),
            figure=FIGURE if _draw(log, scores, folder / FIGURE) else None,
            samples=samples and _copy_samples(run, samples, folder / SAMPLES, log),
            environment=yaml.safe_dump(_versions(run), sort_keys=False),
        ),
        encoding="utf-8",
    )
    return card


def _front_matter(config: dict[str, Any]) -> str:
    """What Hugging Face indexes."""
    named = is_hub_id(config["model"]) and not Path(config["model"]).exists()
    return ModelCardData(
        license=_license(config),
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=config["model"] if named else None,
        base_model_relation=("adapter" if config["finetune"] == "lora" else "finetune") if named else None,
        tags=["dgpo", "text-to-image", "reinforcement-learning", *(["lora"] if config["finetune"] == "lora" else [])],
    ).to_yaml()


def _license(config: dict[str, Any]) -> str:
    """The one that was named, or that of a model inside this package, which is known."""
    return "apache-2.0" if config["license"] == "other" and config["model"] in EMBEDDED else config["license"]


def _row(change: Change) -> dict[str, str]:
    before = "" if change.single else number(change.first.value, change.size)
    return {
        "name": change.where,
        "kind": KINDS[change.kind],
        "before": before,
        "after": number(change.last.value, change.size),
    }


def _draw(log: Log, scores: list[Change], path: Path) -> bool:
    """The headline scores over iterations; nothing where none was evaluated twice."""
    lines = [change.name for change in headline(scores) if not change.single]
    if not lines:
        return False
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name in lines:
        axes.plot(*zip(*log.series(name.key)), marker="o", markersize=3, label=f"{name.score}, {name.eval_set}")
    axes.set_xlabel("iteration")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return True


def _base(config: dict[str, Any]) -> str:
    """The model as Python code that stock diffusers loads it by, wherever the code is run."""
    model = config["model"]
    if model in EMBEDDED:
        return f"dgpo.model_path({_code(model)})"
    folder = Path(model).expanduser()
    # nobody else has the folder, so that whoever reads the card on the hub is spared its place
    return _code(os.path.abspath(folder) if folder.is_dir() and not config["push_to_hub"] else model)


def _code(value: Any) -> str:
    """A value as Python code, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _copy_samples(run: Path, samples: Samples, path: Path, log: Log) -> str:
    last = max((each.iteration for each in log.standings()), default=max(samples.iterations))
    shown = [i for i in samples.iterations if i <= last] or [*samples.iterations]
    shutil.copyfile(run / "samples" / f"iteration-{max(shown):06d}.png", path)
    return path.name


def _versions(run: Path) -> dict[str, Any]:
    """What the run said of its software; nothing of places."""
    return {k: v for k, v in read_mapping(run / "environment.json").items() if isinstance(v, str)}
