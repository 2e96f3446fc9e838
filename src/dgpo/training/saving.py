"""Checkpoints of a run, and what a finished one leaves: the averaged weights, their model card, the upload."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.config import Config, save_yaml
from dgpo.errors import NonFiniteError, UserError
from dgpo.models import VelocityModel
from dgpo.models.pipeline import PipelineModel
from dgpo.report import StockUse, write_card
from dgpo.run import checkpoint, optimizer_state
from dgpo.run import folder as runfolder
from dgpo.run.hub import push
from dgpo.training.background import Background
from dgpo.training.draw import for_evaluation
from dgpo.training.meter import NoiseAverage
from dgpo.training.state import State, done


def save(run: Path, model: VelocityModel, optimizer: torch.optim.Optimizer, state: State, config: Config) -> Path:
    """Write a checkpoint, and return its folder; refuse, on all ranks, one whose weights are not finite."""

    def saved() -> None:
        _require_finite(model, optimizer, state)
        write_checkpoint(run, model, optimizer, state, config)

    if model.weights.sharded:
        saved()
    else:
        distributed.on_main(saved)
    return checkpoint.folder_of(run, state.iteration)


def begin(
    background: Background,
    run: Path,
    model: VelocityModel,
    optimizer: torch.optim.Optimizer,
    state: State,
    config: Config,
) -> None:
    """Let a thread write the same from a copy in host memory; all ranks call it, while no other is being written."""
    sharded = model.weights.sharded
    writes = distributed.is_main() or sharded
    if sharded:
        _require_finite(model, optimizer, state)

    def copied() -> dict[str, dict[str, Tensor]]:
        if not sharded:
            _require_finite(model, optimizer, state)
        return checkpoint.copied(saved_tensors(model, optimizer))

    tensors = distributed.together(lambda: copied() if writes else {})
    folder = checkpoint.folder_of(run, state.iteration)
    if not writes:
        background.begin(lambda: None, lambda _: folder)
        return
    content = _content(model, state, config, tensors)
    if not sharded:
        background.begin(lambda: _write(run, model, content), lambda _: folder)
        return

    def end(own: dict[str, str]) -> Path:
        beside = partial(_write_beside, model, content)
        checkpoint.end_shards(run, content.iteration, [*content.tensors], own, content.values, beside)
        _prune(run, content)
        return folder

    checkpoint.begin_shards(run, content.iteration, content.tensors)
    background.begin(lambda: checkpoint.write_shards(run, content.iteration, content.tensors), end)


def _require_finite(model: VelocityModel, optimizer: torch.optim.Optimizer, state: State) -> None:
    bad = not_finite(model, optimizer)
    if bad:
        what = f"the policy has exploded: {', '.join(bad)} not finite after step {state.step}"
        raise distributed.shared(NonFiniteError(what))


def rescuers(
    model: VelocityModel, optimizer: torch.optim.Optimizer, state: State, config: Config
) -> tuple[Callable[[], list[str]], Callable[[Path], None]]:
    """What `rescue` calls: which weight sets are not finite, and how to write a checkpoint below a folder."""

    def broken() -> list[str]:
        return not_finite(model, optimizer)

    def write(folder: Path) -> None:
        write_checkpoint(folder, model, optimizer, state, config)

    return broken, write


def write_checkpoint(
    run: Path, model: VelocityModel, optimizer: torch.optim.Optimizer, state: State, config: Config
) -> None:
    """Everything that a resumed run needs, its config, and the averaged LoRA as stock diffusers reads it."""
    _write(run, model, _content(model, state, config, saved_tensors(model, optimizer)))


class _Content(NamedTuple):
    """What a checkpoint is made of."""

    config: Config
    iteration: int
    best_iteration: int
    values: dict[str, Any]  # the state
    tensors: dict[str, dict[str, Tensor]]  # of this rank
    lora: dict[str, Tensor]  # the averaged one, whole, on the first rank; empty where there is none


def _content(model: VelocityModel, state: State, config: Config, tensors: dict[str, dict[str, Tensor]]) -> _Content:
    """All ranks of a sharded model call it."""
    values = {**asdict(state), "old_is_policy": model.weights.old_is_policy}
    lora = {}
    if config.finetune == "lora":
        lora = model.weights.whole("ema") if model.weights.sharded else tensors["ema"]
    return _Content(config, state.iteration, state.best_iteration, values, tensors, lora)


def _write(run: Path, model: VelocityModel, content: _Content) -> None:
    write = checkpoint.save_shards if model.weights.sharded else checkpoint.save
    write(run, content.iteration, content.tensors, content.values, partial(_write_beside, model, content))
    _prune(run, content)


def _write_beside(model: VelocityModel, content: _Content, folder: Path) -> None:
    save_yaml(content.config, folder / runfolder.CONFIG)
    if content.lora:
        model.weights.write(folder / "lora", "ema", content.lora)


def _prune(run: Path, content: _Content) -> None:
    if distributed.is_main():
        checkpoint.prune(run, content.config.keep_checkpoints, {content.best_iteration})


def not_finite(model: VelocityModel, optimizer: torch.optim.Optimizer) -> list[str]:
    """The weight sets, or `optimizer`, that hold NaN or infinity; of sharded ones on any rank."""
    bad = checkpoint.not_finite(saved_tensors(model, optimizer))
    return list(dict.fromkeys(distributed.gather_objects(bad))) if model.weights.sharded else bad


def saved_tensors(model: VelocityModel, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds: every weight set but the frozen one, and the optimizer's moments."""
    names = [name for name, _ in model.weights.named_parameters()]
    sets = {name: model.weights.tensors(name) for name in model.weights.names if name != "ref"}
    return {**sets, "optimizer": optimizer_state.optimizer_tensors(optimizer, names)}


def restore(run: Path, model: VelocityModel, optimizer: torch.optim.Optimizer) -> State:
    """Take over the newest checkpoint of a run."""
    path = checkpoint.latest(run)
    assert path is not None
    if model.weights.sharded:
        tensors, values = checkpoint.load_shards(path)
        distributed.together(lambda: _take_over(path, tensors, model, optimizer))
    else:
        tensors, values = checkpoint.load(path)
        _take_over(path, tensors, model, optimizer)
    model.weights.old_is_policy = values["old_is_policy"]
    return state_of(values)


def _take_over(
    path: Path, tensors: dict[str, dict[str, Tensor]], model: VelocityModel, optimizer: torch.optim.Optimizer
) -> None:
    checkpoint.require_finite(path, tensors)
    names = [name for name, _ in model.weights.named_parameters()]
    optimizer_state.load_optimizer_tensors(optimizer, names, tensors.pop("optimizer"))
    missing = {*model.weights.names} - {"ref", *tensors}
    if missing:
        raise UserError(f"{path} holds no weights {', '.join(missing)}; resume with the model that the run began with")
    for name, part in tensors.items():
        model.weights.load(name, part)


def state_of(values: dict[str, Any]) -> State:
    """The state of a run that a checkpoint holds."""
    state = State(**{name: value for name, value in values.items() if name != "old_is_policy"})
    return replace(state, noise=NoiseAverage(**values["noise"]))


def finish(run: Path, model: VelocityModel, state: State, config: Config) -> None:
    """Export the averaged weights of a run that is done as stock diffusers reads them, with a model card.

    final/ has those of the last iteration, and best/ those of the best evaluation, where it was an earlier one that
    training had led to. All ranks call it; the first writes, and the others give it their rows of sharded weights.
    """
    main = distributed.is_main()
    if not (done(state, config) and config.checkpoint_every and (main or model.weights.sharded)):
        return
    if main:
        shutil.rmtree(run / "best", ignore_errors=True)  # of the end from which a resumed run has gone on
    exported, best = [(run / "final", state.iteration)], checkpoint.folder_of(run, state.best_iteration)
    model.weights.export(run / "final", "ema")
    if 0 < state.best_iteration < state.iteration and _is_whole(best, model):
        _export_best(best, run / "best", model)
        exported.append((run / "best", state.best_iteration))
    for folder, iteration in exported if main else []:
        write_card(run, folder, _stock_use(model, config), iteration)


def _is_whole(path: Path, model: VelocityModel) -> bool:
    if not model.weights.sharded:
        return checkpoint.damage(path) is None
    damage = checkpoint.damage(path, distributed.rank(), distributed.world_size())
    return not any(distributed.gather_objects([damage]))


def _export_best(path: Path, folder: Path, model: VelocityModel) -> None:
    """Export the averaged weights of a checkpoint; the model has its own again afterwards."""
    own = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.weights.tensors("ema").items()}
    try:
        load = checkpoint.load_shards if model.weights.sharded else checkpoint.load
        model.weights.load("ema", load(path)[0]["ema"])
        model.weights.export(folder, "ema")
    finally:
        model.weights.load("ema", own)


def _stock_use(model: VelocityModel, config: Config) -> StockUse | None:
    """None: of a model that is no pipeline of diffusers."""
    if not isinstance(model, PipelineModel):
        return None
    sampling = for_evaluation(config.sampling)
    arguments = {"num_inference_steps": sampling.num_inference_steps, **model.stock_call(sampling.guidance_scale)}
    return StockUse(model.absent, arguments)


def upload(run: Path, state: State, config: Config) -> None:
    """Upload the final weights to the hub, if the config says so."""
    if done(state, config) and config.checkpoint_every and config.push_to_hub:
        print(f"Uploading the final weights to {config.push_to_hub}", flush=True)
        print(f"Uploaded: {push(run / 'final', config.push_to_hub, config.hub_private)}")
