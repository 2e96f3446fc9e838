"""What a run needs, looked at one by one before it starts: each check is fine or says what is wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from dgpo.config import Config
from dgpo.data.groups import GroupDataset
from dgpo.data.own_prompts import Parted, part
from dgpo.data.prompts import HUB, PromptSet, load_prompts, sources_of
from dgpo.data.sampler import repeats
from dgpo.distributed.sharded import require_several
from dgpo.errors import UserError
from dgpo.models import locate
from dgpo.models.compiling import require_compiler
from dgpo.models.long_text import long_prompts
from dgpo.models.start import choose_file
from dgpo.plan.estimates import Estimate, text_length
from dgpo.plan.fitting import GIB, advice, needs, room
from dgpo.plan.gpus import GPU
from dgpo.plan.skeleton import find
from dgpo.rewards.builtin.weights import MissingFiles, asking_the_hub
from dgpo.rewards.combine import check_run
from dgpo.run import checkpoint
from dgpo.run import folder as runfolder
from dgpo.run.trackers import require_trackers
from dgpo.training import schedule
from dgpo.training.setup import checkpoint_space, require_sides, reward_sets
from dgpo.utils.hub_id import RUNS, is_hub_id


class Check(NamedTuple):
    """One line."""

    ok: bool
    text: str
    doubt: bool = False  # fine, and yet to be looked at


def check(name: str, look: Callable[[], str]) -> Check:
    """look: returns what is fine, raises UserError for what is not."""
    try:
        return Check(True, f"{name}: {look()}")
    except UserError as error:
        return Check(False, f"{name}: {error}")


def run_checks(estimated: Estimate, gpu: GPU | None, online: bool, overwrite: bool = False) -> list[Check]:
    """All of them, and what a run would only warn of. overwrite: as `train` takes it"""
    config, start, doubts = estimated.config, estimated.config.lora.start, list[str]()
    checks = [
        check("model", lambda: _model(config, online)),
        *([check("lora.start", lambda: _lora_start(start, online))] if start else []),
        check("sizes", lambda: _sizes(estimated)),
        check("processes", lambda: _processes(estimated)),
        check("prompts", lambda: _prompts(estimated, online, doubts)),
        check("rewards", lambda: _rewards(config, online, doubts)),
        check("optimizer", lambda: _optimizer(estimated)),
        *([check("compile", lambda: _compile(estimated))] if config.compile else []),
        check("trackers", lambda: _trackers(config)),
        check("run folder", lambda: _run_folder(config, overwrite)),
        check("disk", lambda: _disk(estimated)),
        check("memory", lambda: _memory(estimated, gpu)),
    ]
    return [*checks, *(Check(True, doubt, doubt=True) for doubt in doubts)]


def read_prompts(config: Config, online: bool) -> PromptSet:
    """The run's own prompts; nothing is asked of the hub unless `online`."""
    if config.offline is not None:
        return GroupDataset(config.offline).prompts
    return _read(config.prompts, online)


def _model(config: Config, online: bool) -> str:
    source = locate(config.model)
    folder = find(config.model)
    if not Path(source).is_dir() and online:
        return _hub(source)
    if folder is None:
        raise UserError(
            f"{source} is no folder here and not in the local cache, so that a run would download it. Whether it is "
            "gated, and open to you, can only be seen online: give --online"
        )
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    missing = sorted(_without_weights(folder, index))
    if missing and Path(source).is_dir():
        raise UserError(f"{folder} has no safetensors file of {', '.join(missing)}; save the pipeline again")
    return f"{source} is here" + (f", but for the weights of {', '.join(missing)}" if missing else "")


def _lora_start(start: str, online: bool) -> str:
    """Whether there is something to continue from; that it fits the model is seen when it is loaded."""
    path = Path(start)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise UserError(f"the folder {start!r} holds no safetensors file; a run leaves its LoRA in RUN/final")
    if path.exists():
        choose_file(start)
        return f"{start} is here"
    if not is_hub_id(start):
        raise UserError(f"there is no file or folder {start!r}, and it is no id owner/name")
    if online:
        return _hub(start)
    raise UserError(f"{start!r} is not here, so that a run would ask the hub for it; whether it can: give --online")


def _compile(estimated: Estimate) -> str:
    if not estimated.on_cpu:
        return "a C compiler is needed on the GPU's machine; time and memory are estimated as without"
    require_compiler(torch.device("cpu"))
    return "there is a C++ compiler; time and memory are estimated as without"


def _without_weights(folder: Path, index: dict[str, object]) -> Iterator[str]:
    """Names of networks, which have a config.json, without weights beside it."""
    for name in index:
        if (folder / name / "config.json").is_file() and not list((folder / name).glob("*.safetensors")):
            yield name


def _hub(source: str) -> str:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(source, timeout=20)
        HfApi().auth_check(source)
    except Exception as error:  # of the hub, of the network or of a proxy: they have no kind in common
        said = str(error).strip().splitlines()
        raise UserError(
            f"{source} cannot be had: {said[0] if said else type(error).__name__}. If it is gated, accept its licence "
            "on its page and log in with `hf auth login`"
        ) from error
    return f"{source} is on the hub, {'gated, and open to you' if info.gated else 'open to all'}"


def _sizes(estimated: Estimate) -> str:
    if estimated.unknown:
        raise UserError(estimated.unknown)
    return f"counted from the configuration files, {text_length(estimated)}"


def _processes(estimated: Estimate) -> str:
    config, g = estimated.config, estimated.geometry
    require_several(config.shard, g.processes)
    schedule.require_processes(config, g.processes, _smallest_group(config))
    return f"{g.drawn} of {config.num_groups * config.group_size} images each"


def _smallest_group(config: Config) -> int | None:
    """Images of the smallest group of a dataset; None where none is read, or none can be, as another check says."""
    try:
        return None if config.offline is None else min(GroupDataset(config.offline).sizes)
    except UserError:
        return None


def _read(source: str | tuple[str, ...], online: bool) -> PromptSet:
    on_hub = [name for name in sources_of(source) if name.startswith(HUB)]
    if on_hub and not online:
        raise UserError(f"{on_hub[0]} can be on the hub, where nothing is asked without --online")
    return load_prompts(source)


def _prompts(estimated: Estimate, online: bool, doubts: list[str]) -> str:
    """That some are longer than the model reads goes into `doubts`."""
    config = estimated.config
    trained, sets, _ = _parted(config, online)
    counts = ", ".join([f"{len(trained)} to train", *(f"{len(some)} in {name}" for name, some in sets.items())])
    again = repeats(config.num_groups, len(trained), config.offline is not None)
    unknown = "whether the model reads them to their ends is not known"
    if estimated.model is not None and not estimated.without_vocabulary:
        unknown = ""
        doubts += long_prompts(estimated.model, (text for some in (trained, *sets.values()) for text in some.prompts))
    return "; ".join(filter(None, [counts, again, unknown]))


def _parted(config: Config, online: bool) -> Parted:
    return part(config, read_prompts(config, online), lambda source: _read(source, online))


def _rewards(config: Config, online: bool, doubts: list[str]) -> str:
    """Imports them, which makes those that are classes, and shows them every prompt; their doubts go into `doubts`."""
    reward, watched = reward_sets(config, {})
    require_sides(config, reward, watched)
    try:
        trained, evaluated, _ = _parted(config, online)
    except UserError:
        return f"{', '.join(watched.rewards)}; whether prompts have the metadata they read is not known"
    names = ", ".join(watched.rewards)
    try:
        with asking_the_hub(online):
            scored = trained if config.offline is None else None
            doubts += check_run(reward, watched, scored, evaluated, config.images_of)
    except MissingFiles as error:
        return f"{names}; whether they can score every prompt is not known: {error}"
    return names


def _optimizer(estimated: Estimate) -> str:
    name = estimated.config.optimizer.name
    if name != "adamw8bit":
        return name
    if importlib.util.find_spec("torchao") is None:
        raise UserError("optimizer.name='adamw8bit' needs torchao: pip install 'dgpo[8bit]'")
    if not estimated.on_cpu:
        return f"{name}; a C compiler is needed on the GPU's machine"
    require_compiler(torch.device("cpu"), "optimizer.name='adamw8bit'", "take adamw")
    return name


def _trackers(config: Config) -> str:
    require_trackers(config.trackers)
    return ", ".join(["metrics.jsonl", *config.trackers])


def _run_folder(config: Config, overwrite: bool) -> str:
    """As a run looks at it before it loads anything."""
    runfolder.require_free(config, overwrite)
    own, exists = runfolder.found(config)
    if exists and overwrite:
        return f"{own.out}, from which the old run is moved aside"
    return f"{own.out}" + (", or with the next number that is free" if config.out is None else " is free")


def _disk(estimated: Estimate) -> str:
    """As a run asks for it at its start."""
    config = estimated.config
    if not config.checkpoint_every:
        return "no checkpoints"
    needed = checkpoint_space(config, 4 * estimated.trained, estimated.sets)
    checkpoint.require_free_space(config.out or RUNS, needed)
    return f"checkpoints take up to {needed / 1e9:.1f} GB" if estimated.trained else "not known without the sizes"


def _memory(estimated: Estimate, gpu: GPU | None) -> str:
    if estimated.peak is None:
        raise UserError("not estimated")
    available, where = room(gpu, estimated.on_cpu)
    if needs(estimated) <= available:
        return f"{needs(estimated) / GIB:.1f} of {where}'s {available / GIB:.1f} GiB"
    raise UserError(
        f"{needs(estimated) / GIB:.1f} GiB do not fit into {where}'s {available / GIB:.1f} GiB. "
        f"{advice(estimated, available)}"
    )
