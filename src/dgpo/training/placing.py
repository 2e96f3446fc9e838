"""`offload: auto`: whether all parts of the model are on the GPU at once, decided before anything is loaded.

Compared are what `dgpo plan` foresees, with its allowance for the allocator and CUDA, and the GPU's whole memory; what
rewards take is in neither. A run keeps what it began with, as it keeps its `dtype`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from dgpo import distributed
from dgpo.config import Config
from dgpo.models import locate, quiet
from dgpo.models.folder import fetched, read_index
from dgpo.run.console import say


def with_offload(config: Config, device: torch.device, prompts: Iterable[str] = ()) -> Config:
    """Decide an offload of auto, and say what was taken and why.

    config: as it will train; prompts: the longest stands for all; none: a text of a hundred tokens does
    """
    if config.offload != "auto":
        return config
    memory = gpu_memory(device)
    if memory is None:
        say(f"offload none: on {device.type} there is no other memory to keep parts in")
        return replace(config, offload="none")
    # which asks the loop's own rules, and so comes after this room
    from dgpo.plan.estimates import STAND_IN, estimate
    from dgpo.plan.fitting import chosen_offload

    say("counting what all parts of the model would take at once")
    source = locate(config.model)
    with quiet():
        fetched(source, read_index(source))
    longest = max(prompts, key=len, default=STAND_IN)
    estimated = estimate(replace(config, offload="none"), distributed.world_size(), False, longest)
    available, where = min(distributed.gather_objects([memory]))  # of the smallest GPU, so that all decide alike
    offload, why = chosen_offload(estimated, available, where)
    say(f"offload {offload}, {why}")
    return replace(config, offload=offload)


def gpu_memory(device: torch.device) -> tuple[int, str] | None:
    """Bytes of a GPU and its name; None where tensors are in the memory of the host anyway."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return properties.total_memory, properties.name
