"""A network whose weights are spread over the processes, by PyTorch's FSDP2 (`fully_shard`).

Each rank holds some rows of every parameter. The weights of a block are gathered from all ranks when it computes, and
let go after it. In a backward its gradients are summed over ranks, and each rank keeps its rows of them.

Whatever trains, averages or saves sees plain tensors, this rank's rows: FSDP's gradients are handed over to them, and a
weight set is bound by letting FSDP gather other rows. It has no public way to do that: `_sharded_param_data` is set
here, and `param_dtype`, to which FSDP casts rows before it gathers them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from dgpo.distributed.collectives import all_gather_rows
from dgpo.distributed.process_group import is_main, rank, world_size
from dgpo.errors import UserError


def require_several(shard: str, processes: int) -> None:
    """Refuse to shard with one process, or with a PyTorch that cannot."""
    if shard == "none":
        return
    if processes == 1:
        raise UserError(
            f"shard={shard!r} spreads the weights over several processes, and this is one; start it with "
            "`torchrun --standalone --nproc_per_node GPUS -m dgpo train ...`, or take shard='none'"
        )
    import torch.distributed.fsdp as fsdp

    if not hasattr(getattr(fsdp, "FSDPModule", None), "set_force_sum_reduction_for_comms"):
        raise UserError(
            f"shard={shard!r} needs FSDP2 as PyTorch 2.13 has it, and this is {torch.__version__}; install a newer "
            "PyTorch, or take shard='none'"
        )


def require_blocks(kind: type) -> None:
    """Refuse to shard a network whose class names no blocks."""
    if not _block_names(kind):
        raise UserError(
            f"shard='full': diffusers names no blocks of a {kind.__name__}, between which weights could be gathered "
            "and let go; take shard='none'"
        )


def rows_of(total: int, rank: int, world_size: int) -> slice:
    """The rows of a tensor that a rank holds: as many as any other, but for the last ranks, which may have none."""
    size = -(-total // world_size)
    return slice(min(total, rank * size), min(total, (rank + 1) * size))


def rows_here(total: int) -> slice:
    """The same of this rank."""
    return rows_of(total, rank(), world_size())


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ranks' rows joined, on the CPU of the first rank; empty on the others. One tensor at a time is gathered."""
    gathered = {}
    for name, rows in tensors.items():
        tensor = all_gather_rows(rows)
        if is_main():
            gathered[name] = tensor.cpu()
    return gathered


@final
class Shards:
    """The rows of a network's parameters on this rank."""

    def __init__(self, network: Any, device: torch.device, read: Callable[[nn.Module], None]) -> None:
        """Shard a network block by block, so that the device holds one whole block at most.

        read: gives a module the weights that it has not yet
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(device.type, (world_size(),))
        for block in blocks_of(network):
            read(block)
            fully_shard(block.to(device), mesh=mesh, reshard_after_forward=True)
        read(network)
        for tensor in [p for p in network.parameters() if not hasattr(p, "to_local")] + list(network.buffers()):
            tensor.data = tensor.data.to(device)
        # the root too lets go: what it has gathered would be that of another weight set
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
        modules = [module for module in network.modules() if isinstance(module, FSDPModule)]
        for module in modules:
            module.set_gradient_divide_factor(1.0)  # a sum: the loss is divided by the images of all ranks
            module.set_force_sum_reduction_for_comms(True)
        network._get_fsdp_state()._lazy_init()  # else the first forward would bind the policy again
        groups = [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]
        parts = {part._param_fqn: part for group in groups for part in group.fsdp_params}
        self._parts: dict[str, Any] = {key: parts[key] for key, _ in network.named_parameters()}
        self._sets = {"policy": self._data()}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Those of the whole parameters."""
        return {key: part._orig_size for key, part in self._parts.items()}

    def policy(self) -> dict[str, nn.Parameter]:
        """{key: this rank's rows}, which get the gradients of the network."""
        own = self._parameters("policy")
        for key, parameter in own.items():
            if parameter.requires_grad:
                self._parts[key].sharded_param.register_post_accumulate_grad_hook(partial(_hand_over, parameter))
        return own

    def copy(
        self, name: str, on_host: bool = False, dtypes: Mapping[str, torch.dtype] | None = None
    ) -> dict[str, nn.Parameter]:
        """One more set of all parameters, which does not train.

        on_host: in host memory, where it stays when the tensors of `gathered` get other data
        dtypes: of those that are kept in another one than the policy's, in which they are gathered again
        """
        dtypes = dtypes or {}
        self._sets[name] = [
            data.to("cpu" if on_host else data.device, dtypes.get(key, data.dtype), copy=True)
            for key, data in zip(self._parts, self._data())
        ]
        own = self._parameters(name)
        for parameter in own.values():
            parameter.requires_grad_(False)
        return own

    def gathered(self, name: str) -> list[Tensor]:
        """What FSDP gathers of a set. It must be on the device by then."""
        return self._sets[name]

    def bind(self, name: str) -> None:
        """Let the network compute with a set."""
        for part, data in zip(self._parts.values(), self._sets[name]):
            part._sharded_param_data = data
            part.param_dtype = None if data.dtype == part.orig_dtype else part.orig_dtype  # what is gathered of it

    def _data(self) -> list[Tensor]:
        """What FSDP gathers now: flat, and on all ranks as long as on the first."""
        return [part._sharded_param_data for part in self._parts.values()]

    def _parameters(self, name: str) -> dict[str, nn.Parameter]:
        """A set without the padding."""
        return {
            key: nn.Parameter(
                data.view(part.padded_sharded_param_size)[: part.sharded_size[0]], part.sharded_param.requires_grad
            )
            for (key, part), data in zip(self._parts.items(), self._sets[name])
        }


def _hand_over(own: nn.Parameter, shard: Any) -> None:
    """Add the gradient that FSDP has put into its own parameter to that of the plain one."""
    new, shard.grad = shard.grad.to_local(), None
    own.grad = new if own.grad is None else own.grad.add_(new)


def _block_names(kind: Any) -> set[str]:
    """Classes of the blocks that a network repeats, as diffusers names them."""
    named = {*(getattr(kind, "_repeated_blocks", None) or ()), *(getattr(kind, "_no_split_modules", None) or ())}
    return {name for name in named if "Block" in name}


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network that hold no other block."""
    names = _block_names(network)
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    return [block for block in blocks if not any(type(m).__name__ in names for m in [*block.modules()][1:])]
