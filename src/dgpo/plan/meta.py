"""The network's own code on the meta device, where tensors have shapes and no data.

Counted is what eager PyTorch would do: bytes of tensors alive at once (`dgpo.utils.peak_memory`), floating-point
operations of matrix products, convolutions and attention (torch's formulas), bytes that operators read and write.
`rules.py` says how autocast and attention are treated. The workspace that a kernel takes for itself is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from dgpo.models import Rows
from dgpo.models.pipeline import PipelineModel
from dgpo.plan import stand_ins
from dgpo.plan.rules import WIDE_ON_CUDA, Rules
from dgpo.utils.peak_memory import peak_memory


@dataclass
class Count:
    """What a block would have taken; filled in at its end."""

    peak: int = 0  # bytes alive at once, of what was made inside
    flops: int = 0
    moved: int = 0  # bytes that operators read and wrote
    fp32_flops: int = 0  # of the flops, those of products in fp32


class MetaModel:
    """A model on the meta device, asked as the loop asks a loaded one, inside blocks of `counted`."""

    def __init__(self, model: PipelineModel, device_type: str) -> None:
        """device_type: cuda or cpu, whose rules autocast follows."""
        self.model, self.family = model, model.family
        self._dtype = None if model.dtype == torch.float32 else model.dtype
        self._wide = WIDE_ON_CUDA if device_type == "cuda" else frozenset()
        if model.network.is_gradient_checkpointing:
            model.network.enable_gradient_checkpointing(self._checkpoint)

    def _checkpoint(self, module: Any, *args: Any) -> Any:
        """As diffusers does it; what is computed again follows the same rules."""
        return checkpoint(
            module.__call__, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self._rules())
        )

    def _rules(self) -> Rules:
        return Rules(self._dtype, self._wide)

    @contextmanager
    def counted(self) -> Iterator[Count]:
        """Count what happens inside the block, where tensors on the CPU may meet those on the meta device."""
        count, operators = Count(), _Operators()
        # views of weights are made all the time and are not new
        with operators, peak_memory(self._held(), torch.device("meta")) as peak:
            before = peak.bytes
            yield count
        count.peak, count.moved = peak.bytes - before, operators.moved
        count.flops, count.fp32_flops = operators.flops, operators.fp32_flops

    def _held(self) -> list[Tensor]:
        """All weights and the gradients that there are."""
        sets = [t for name in self.model.weights.names for t in self.model.weights.tensors(name).values()]
        gradients = [p.grad for p in self.model.weights.parameters() if p.grad is not None]
        parts = [part for part in self.model.pipeline.components.values() if isinstance(part, nn.Module)]
        return [*sets, *gradients, *(t for part in parts for t in (*part.parameters(), *part.buffers()))]

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Rows:
        """Conditioning of these prompts; numbers and masks are real, everything else is shapes."""
        with Rules(), stand_ins.encoding(self.model.pipeline, self.family.network):
            rows = self.family.encode(prompts)
        return Rows({name: t.to("meta") if t.is_floating_point() else t for name, t in rows.tensors.items()})

    def make_gradients(self) -> None:
        """As after a first backward."""
        for parameter in self.model.weights.parameters():
            parameter.grad = torch.empty_like(parameter)

    def latents(self, n: int) -> Tensor:
        return torch.empty(n, *self.model.latent_shape, device="meta")

    def velocity(self, x_t: Tensor, cond: Rows, empty: Rows, scale: float, weights: str = "policy") -> Tensor:
        """As the model's own; empty: the empty prompt's row."""
        t = torch.full((len(x_t),), 0.5)
        with self.model.weights.use(weights):
            if scale == 1.0:
                return self._forward(x_t, t, cond)
            both = empty.repeat(len(cond)).cat(cond)
            v_uncond, v_cond = self._forward(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
            return self.family.guide(v_uncond, v_cond, scale)

    def _forward(self, x_t: Tensor, t: Tensor, cond: Rows) -> Tensor:
        with Rules() if self.model.draws_plain else self._rules():
            return self.family.predict(x_t, t, cond).float()

    def decode(self, x0: Tensor) -> Tensor:
        with Rules():
            return self.model.decode(x0)


class _Operators(TorchDispatchMode):
    """Adds up what operators do, and lets real tensors meet those without data.

    Whole numbers and masks stay real wherever they can: models look at them, and they are small.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.fp32_flops, self.moved = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        with_data = [not t.is_meta for t in given]
        if any(with_data) and not all(with_data):
            args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        out = func(*args, **kwargs)
        if all(with_data) and isinstance(out, Tensor) and out.is_meta and not out.is_floating_point():
            out = func(*args, **{**kwargs, "device": torch.device("cpu")})  # it was made, or moved, to the meta device
        self._add(func, args, kwargs, out, given)
        return out

    def _add(self, func: Any, args: Any, kwargs: Any, out: Any, given: list[Tensor]) -> None:
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            self.flops += flops
            self.fp32_flops += flops * (given[0].dtype == torch.float32)  # attention's other numbers are always fp32
        made = list(_tensors((out,)))
        own = {t.untyped_storage()._cdata for t in given}
        if func._schema.is_mutable or not any(t.untyped_storage()._cdata in own for t in made):  # else a view
            self.moved += sum(t.numel() * t.element_size() for t in (*given, *made))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among an operator's arguments or results, and in lists of them; pytrees would take several times longer."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
