"""The optimizer's moments as named tensors, which a checkpoint holds as it holds weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dgpo.errors import UserError


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """{"exp_avg.NAME": tensor, "exp_avg_sq.NAME": ..., "step.NAME": ...}; empty before the first step.

    `names` are the parameters' names in the optimizer's own order. Learning rates and betas are not in it: those
    belong to the config. A quantized moment is kept as its parts, "exp_avg:codes.NAME", "exp_avg:scale.NAME"...
    """
    _check_names(optimizer, names)
    states = optimizer.state_dict()["state"]
    return {
        f"{key}{part}.{names[i]}": tensor
        for i, state in states.items()
        for key, value in state.items()
        for part, tensor in _parts(value).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Give back to the optimizer what `optimizer_tensors` took from it, bit for bit."""
    _check_names(optimizer, names)
    numbers = {name: number for number, name in enumerate(names)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(":" in name.partition(".")[0] for name in tensors):
        _make_states(optimizer, parameters)
    states: dict[int, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        key, _, part = key.partition(":")
        if name not in numbers:
            raise UserError(f"the optimizer state has {name!r}, which is not among the trained parameters")
        number = numbers[name]
        if part:
            moment = optimizer.state[parameters[number]][key]
            _require_shape(name, value, getattr(moment, part))
            getattr(moment, part).copy_(value)
            states.setdefault(number, {})[key] = moment
            continue
        if value.dim():
            _require_shape(name, value, parameters[number])
        states.setdefault(number, {})[key] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def _parts(value: Tensor) -> dict[str, Tensor]:
    """{"": value}, or of a quantized tensor {":codes": ..., ":scale": ...}."""
    if not is_traceable_wrapper_subclass(value):
        return {"": value}
    inner, _ = value.__tensor_flatten__()
    return {f":{name}": getattr(value, name) for name in inner}


def _make_states(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Let the optimizer make its own kind of moments, by a step that changes no weight."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = torch.zeros_like(rate) if isinstance(rate, Tensor) else 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate


def _require_shape(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise UserError(
            f"the optimizer state of {name!r} has shape {tuple(value.shape)}, the parameter "
            f"{tuple(like.shape)}; it belongs to another model or LoRA rank"
        )


def _check_names(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if len(set(names)) != count or len(names) != count:
        raise UserError(f"the optimizer holds {count} parameters and got {len(set(names))} distinct names")
