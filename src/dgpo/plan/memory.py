"""Memory of one process, by part and by phase: what is always held, and the worst moment of each phase.

Held are weights, averages, gradients and the optimizer's moments, by counting parameters. A phase adds what is kept of
rollouts then, by arithmetic, and what its network calls make on the meta device. The peak is that of the largest phase.
Where processes share the weights, held is the largest share, and a phase adds what is gathered at once.
Not known: what rewards take, what kernels take for themselves, what an allocator loses to gaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from dgpo.config import Config
from dgpo.distributed.sharded import blocks_of, rows_of
from dgpo.models.pipeline import PipelineModel
from dgpo.models.weights import AVERAGES
from dgpo.plan.runs import Drawing, Runs
from dgpo.training import schedule
from dgpo.training.geometry import Geometry

MOMENTS = {"adamw": 8, "adamw8bit": 2}
"""Bytes a trained parameter of both moments."""


@dataclass(frozen=True)
class Held:
    """Bytes that stay from the first update on."""

    parts: dict[str, int]
    gradients: int
    moments: int
    trained: int  # weights, with the averages and copies of them
    encoders: int  # among the parts, unless they are let go
    gathered: int = 0  # weights of others in a forward, where processes share them
    reduced: int = 0  # gradients for others in a backward
    visitors: dict[str, int] = field(
        default_factory=dict
    )  # network, vae, encoders: among the parts, and not always there
    averages: tuple[int, ...] = ()  # among the parts: old and ema, where they live on the host
    copied: int = 0  # beside the parts: what a checkpoint is written from in the background, on the host

    @property
    def on_host(self) -> int:
        """Bytes that a GPU leaves to the host, where what visits it lives."""
        return sum(self.visitors.values()) + sum(self.averages)

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def held(model: PipelineModel, config: Config, processes: int = 1) -> Held:
    """By part; what is empty is left out."""
    cut = processes if config.shard == "full" else 1
    parts = {name: part for name, part in model.pipeline.components.items() if isinstance(part, nn.Module)}
    sets = {name: _bytes(model.weights.tensors(name).values(), cut) for name in model.weights.names}
    network, policy = model.family.network, sets.pop("policy")
    encoders = {name.replace("_", " "): _bytes_of(p) for name, p in parts.items() if name not in ("vae", network)}
    in_network = policy + (0 if config.finetune == "full" else sum(sets.values()))
    moments = policy // 4 * MOMENTS[config.optimizer.name]
    sizes = {
        f"{network}, frozen": _bytes_of(parts[network], cut) - in_network,
        "vae": _bytes_of(parts["vae"]),
        **({} if config.free_text_encoders else encoders),
        "trained weights, fp32": policy,
        **{f"their {_SETS[name]}": size for name, size in sets.items()},
        "gradients": policy,
        "optimizer moments": moments,
    }
    trained = policy + sum(sets.values())
    own = {name: size for name, size in sizes.items() if size}
    at_once = (0, 0) if cut == 1 else (_at_once(model.network), _at_once(model.network, trained=True))
    visitors = {"network": sizes[f"{network}, frozen"], "vae": sizes["vae"]}
    visitors["encoders"] = 0 if config.free_text_encoders else sum(encoders.values())
    visitors = visitors if config.offload == "parts" else {}
    visit = config.averages == "host" and (cut == 1 or config.finetune == "full")
    averages = tuple(sets[name] for name in AVERAGES if name in sets and visit)
    copied = trained - sets.get("ref", 0) + moments if config.background_saving and config.checkpoint_every else 0
    return Held(
        own,
        policy,
        moments,
        trained,
        sum(encoders.values()),
        *at_once,
        visitors=visitors,
        averages=averages,
        copied=copied,
    )


def _at_once(network: nn.Module, trained: bool = False) -> int:
    """Bytes that are whole at one time: of two blocks, one of which is on its way, and of what is in no block."""
    blocks = blocks_of(network)
    inside = {id(p) for block in blocks for p in block.parameters()}
    rest = [p for p in network.parameters() if id(p) not in inside]
    wanted = [[p for p in some if p.requires_grad or not trained] for some in (rest, *(b.parameters() for b in blocks))]
    return _bytes(wanted[0]) + 2 * max(map(_bytes, wanted[1:]), default=0)


_SETS = {"ref": "frozen copy ref", "old": "average old", "ema": "average ema"}


def phases(model: PipelineModel, config: Config, g: Geometry, runs: Runs, own: Held, on_cpu: bool) -> dict[str, int]:
    """All bytes at the worst moment of each phase.

    model: at the size of rollouts; on_cpu: where pictures share the memory of tensors
    """
    latent = 4 * math.prod(model.latent_shape)
    image = 4 * 3 * math.prod(side * model.pipeline.vae_scale_factor for side in model.latent_shape[1:]) * on_cpu
    path = latent * (config.sampling.num_inference_steps + 1) * (not config.is_deterministic())
    row = latent + runs.row + path  # of a rollout, without its picture
    # the loop holds a rollout until it has the next
    before = own.total + g.images * (row + image)
    frozen = len(config.algorithm.needs - {"old"}) + (g.old_updates > 0) + g.splits
    points = g.update_images * g.points * latent * (2 + frozen)  # x_t and target, and each velocity without gradient
    rows = g.trained + (g.update_images if config.split_updates else 0)
    peaks = {"updating": before + rows * (row + image) + points + _update(config, g, runs, own)}
    if g.solver_calls:
        drawn = before + g.images * row
        solver = 4 * g.sampling_batch * latent  # the solver's own states
        pictures = max((g.images - g.sampling_batch) * image + runs.decoding.peak, 2 * g.images * image)
        peaks |= {"sampling": drawn + solver + own.gathered + runs.sampling.peak, "decoding": drawn + pictures}
    if runs.evaluation is not None:
        for name, peak in _evaluation(runs.evaluation, g, own).items():
            peaks[name] = max(peaks.get(name, 0), before + peak)
    if config.free_text_encoders:  # before anything else
        # a GPU gets the frozen network and the VAE after the encoders have gone
        others = own.total - own.gradients - own.moments if on_cpu else own.trained
        if config.shard == "full" and not on_cpu:  # all but the VAE is there already
            others = own.total - own.gradients - own.moments - own.parts["vae"]
        peaks["encoding"] = others + own.encoders + runs.encoding.peak
    else:
        peaks["encoding"] = before + runs.encoding.peak
    if own.visitors and not on_cpu:
        for name, visitor in _VISITORS.items():
            if name in peaks and not (name == "encoding" and config.free_text_encoders):  # where only trained ones are
                peaks[name] -= sum(own.visitors.values()) - own.visitors[visitor]
    if on_cpu:
        first = "encoding" if config.free_text_encoders else ""  # before any checkpoint is written in the background
        peaks = {name: peak + own.copied * (name != first) for name, peak in peaks.items()}
    if own.averages and not on_cpu:
        peaks = {name: _with_averages_away(name, peak, config, g, runs, own) for name, peak in peaks.items()}
    return {name: peaks[name] for name in ("encoding", "sampling", "decoding", "updating") if name in peaks}


def _evaluation(runs: Drawing, g: Geometry, own: Held) -> dict[str, int]:
    """Bytes beside the last rollout's, of images of another size than its own."""
    solver = 4 * g.sampling_batch * runs.latent
    return {"sampling": solver + own.gathered + runs.sampling.peak, "decoding": runs.decoding.peak}


_VISITORS = {"encoding": "encoders", "sampling": "network", "decoding": "vae", "updating": "network"}
"""Phase -> the frozen part that is on the GPU then, with offload."""


def _with_averages_away(phase: str, peak: int, config: Config, g: Geometry, runs: Runs, own: Held) -> int:
    """A phase's bytes on a GPU that averages visit: one of them to draw, or `old` to answer in an update.

    No gradients are there then: they are let go after each step, and made by the backward passes.
    """
    peak -= sum(own.averages)
    if phase == "updating":
        if runs.old is None or not g.old_updates:
            return peak
        answering = own.averages[0] + own.gathered + runs.old.peak - own.gradients
        return peak + max(0, answering - _update(config, g, runs, own))
    if not (phase == "encoding" and config.free_text_encoders):
        peak -= own.gradients
    return peak + max(own.averages) if phase == "sampling" and schedule.draws_averages(config) else peak


def _update(config: Config, g: Geometry, runs: Runs, own: Held) -> int:
    """Bytes of a forward and backward. Measuring the noise scale goes group by group and keeps a second gradient."""
    makes = g.backwards == 1 and config.shard == "none"  # the gradients, in a first backward
    shared = own.gathered + own.reduced
    usual = shared + runs.update.peak - (own.gradients if makes else 0)
    if runs.by_group is None:
        return usual
    by_group = shared + runs.by_group.peak + own.gradients
    return by_group if config.noise_scale_every == 1 else max(usual, by_group)


def _bytes_of(module: nn.Module, cut: int = 1) -> int:
    if cut > 1:  # buffers are not shared
        return _bytes(module.parameters(), cut) + _bytes(module.buffers())
    return _bytes([*module.parameters(), *module.buffers()])


def _bytes(tensors: Iterable[Tensor], cut: int = 1) -> int:
    """Of all tensors, shared ones once; of so many processes that cut them, the first, which has most rows."""
    storages = {t.untyped_storage()._cdata: _bytes_of_rows(t, cut) for t in tensors}
    return sum(storages.values())


def _bytes_of_rows(tensor: Tensor, cut: int) -> int:
    if cut == 1:
        return tensor.untyped_storage().nbytes()
    return rows_of(len(tensor), 0, cut).stop * tensor[0].nbytes
