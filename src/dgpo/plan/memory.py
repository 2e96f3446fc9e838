"""Memory of one process, by part and by phase: what is always held, and the worst moment of each phase.

Held are weights, averages, gradients and the optimizer's moments, by counting parameters. A phase adds what is kept of
rollouts then, by arithmetic, and what its network calls make on the meta device. The peak is that of the largest phase.
Not known: what rewards take, what kernels take for themselves, what an allocator loses to gaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from dgpo.config import Config
from dgpo.models.pipeline import PipelineModel
from dgpo.plan.runs import Runs
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

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def held(model: PipelineModel, config: Config) -> Held:
    """By part; what is empty is left out."""
    parts = {name: part for name, part in model.pipeline.components.items() if isinstance(part, nn.Module)}
    sets = {name: _bytes(model.weights.tensors(name).values()) for name in model.weights.names}
    network, policy = model.family.network, sets.pop("policy")
    encoders = {name.replace("_", " "): _bytes_of(p) for name, p in parts.items() if name not in ("vae", network)}
    in_network = policy + (0 if config.finetune == "full" else sum(sets.values()))
    moments = policy // 4 * MOMENTS[config.optimizer.name]
    sizes = {
        f"{network}, frozen": _bytes_of(parts[network]) - in_network,
        "vae": _bytes_of(parts["vae"]),
        **({} if config.free_text_encoders else encoders),
        "trained weights, fp32": policy,
        **{f"their {_SETS[name]}": size for name, size in sets.items()},
        "gradients": policy,
        "optimizer moments": moments,
    }
    trained = policy + sum(sets.values())
    return Held({name: size for name, size in sizes.items() if size}, policy, moments, trained, sum(encoders.values()))


_SETS = {"ref": "frozen copy ref", "old": "average old", "ema": "average ema"}


def phases(model: PipelineModel, config: Config, g: Geometry, runs: Runs, own: Held, on_cpu: bool) -> dict[str, int]:
    """All bytes at the worst moment of each phase. on_cpu: where pictures share the memory of tensors."""
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
        peaks |= {"sampling": drawn + solver + runs.sampling.peak, "decoding": drawn + pictures}
    if config.free_text_encoders:  # before anything else
        # a GPU gets the frozen network and the VAE after the encoders have gone
        others = own.total - own.gradients - own.moments if on_cpu else own.trained
        peaks["encoding"] = others + own.encoders + runs.encoding.peak
    else:
        peaks["encoding"] = before + runs.encoding.peak
    return {name: peaks[name] for name in ("encoding", "sampling", "decoding", "updating") if name in peaks}


def _update(config: Config, g: Geometry, runs: Runs, own: Held) -> int:
    """Bytes of a forward and backward. Measuring the noise scale goes group by group and keeps a second gradient."""
    usual = runs.update.peak - (own.gradients if g.backwards == 1 else 0)  # which a first backward makes
    if runs.by_group is None:
        return usual
    by_group = runs.by_group.peak + own.gradients
    return by_group if config.noise_scale_every == 1 else max(usual, by_group)


def _bytes_of(module: nn.Module) -> int:
    return _bytes([*module.parameters(), *module.buffers()])


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of all tensors, shared ones once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
