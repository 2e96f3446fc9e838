"""Drawing in plain bf16, as a stock pipeline computes, in the place of autocast.

Under autocast a LoRA run computes norms and modulations in fp32 on a GPU, and every adapted layer rounds its input, A
and B at every call. Where nothing but the pictures is kept, none of it is needed: the network is in bf16 anyway, and
its adapters are rounded to bf16 once for a batch of pictures. They are not merged into the network's weights: added to
a weight in bf16, whatever is below a 500th of it would vanish, which is all of a young adapter.

Velocities of an update stay under autocast: the policy's is compared there with those of `ref` and `old`, down to
differences of 1e-5, which equal rounding keeps out and unequal rounding would not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def may_be_plain(network: nn.Module, dtype: torch.dtype) -> bool:
    """Whether all weights but those of adapters are in this half precision."""
    if dtype == torch.float32:
        return False
    return all(parameter.dtype == dtype for key, parameter in network.named_parameters() if "lora_" not in key)


@contextmanager
def plain(network: nn.Module, adapter: Mapping[str, nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Inside the block the network takes and computes `dtype` throughout, but for the numbers of timesteps.

    adapter: those of its parameters that are not in it; copies stand in for them. What was there comes back in any case
    """
    own = {id(parameter) for parameter in adapter.values()}
    places = [
        (module._parameters, leaf, parameter)
        for module in network.modules()
        for leaf, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in own
    ]
    hook = network.register_forward_pre_hook(lambda _, args, kwargs: _narrow(args, kwargs, dtype), with_kwargs=True)
    try:
        for owner, leaf, parameter in places:
            owner[leaf] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        yield
    finally:
        hook.remove()
        for owner, leaf, parameter in places:
            owner[leaf] = parameter


def _narrow(args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """A network's arguments in dtype. Its second, where they have no names, is the timestep."""

    def rounded(value: Any) -> Any:
        return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, value)

    return (
        tuple(value if place == 1 else rounded(value) for place, value in enumerate(args)),
        {name: value if name == "timestep" else rounded(value) for name, value in kwargs.items()},
    )
