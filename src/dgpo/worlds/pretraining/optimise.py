"""One stage of pretraining an embedded model: the loop around a loss, which can be stopped and started again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dgpo.core import seeds
from dgpo.core.ema import ema_update
from dgpo.errors import UserError
from dgpo.models.attention import Fp32Attention
from dgpo.run import checkpoint, optimizer_state
from dgpo.worlds.pretraining.muon import Muon


@dataclass(frozen=True)
class Pretrain:
    """Settings of one pretraining run."""

    out: str = "runs/tiny-sd3"
    device: str = "cpu"
    seed: int = 0
    pool: int = 60_000
    """Pictures that are drawn once and used all along."""
    autoencoder_steps: int = 2000
    autoencoder_batch: int = 32
    flow_steps: int = 8000
    flow_batch: int = 72
    autoencoder_lr: float = 2e-3
    flow_lr: float = 2e-3
    ema_decay: float = 0.999
    caption_dropout: float = 0.1
    layers: int = 4
    width: int = 128
    right_steps: int = 0
    """So many first steps of flow_steps have right captions only: a model that first learns what prompts mean, and to
    doubt them afterwards, is shorter in the making than one that is told wrong things all along."""
    wrong_scale: float = 1.0
    """Multiplies the share of wrong captions, WRONG in the world's captions.py."""
    overshoot: float = 0.0
    """Adds this share of the way that the averaged weights took since `right_steps`, at no cost: doubts the more."""
    start: str | None = None
    """A pipeline folder whose transformer and text encoders it begins with. The transformer may have fewer layers: the
    missing ones are put between its own and change nothing at first."""
    patch_weight: float = 0.0
    """Adds this times the cross entropy of telling, from the middle of the transformer, what each patch of the clean
    picture shows. Supervising features makes diffusion transformers learn faster (Yu et al. 2024, REPA)."""
    t_mean: float = 0.4
    """Of the normal whose sigmoid t is; larger: more steps where it is decided what goes where."""
    bf16: bool = False
    """Compute in bf16 on the CPU as well (on CUDA always): twice as fast on CPUs that have instructions for it."""
    compile: bool = False
    """torch.compile the transformer: a minute at the start, then a fifth faster."""
    save_every: int = 500
    log_every: int = 100
    autoencoder: str | None = None
    """A folder of an earlier run whose autoencoder is used instead of training one."""

    def __post_init__(self) -> None:
        if self.overshoot and not 0 < self.right_steps < self.flow_steps:
            raise UserError(
                f"overshoot={self.overshoot:g} goes on from right_steps to flow_steps, here {self.right_steps} and "
                f"{self.flow_steps}; right_steps must lie between 0 and flow_steps"
            )


def optimise(
    modules: nn.ModuleDict,
    loss_at: Callable[[int, torch.Generator], Tensor],
    stage: str,
    steps: int,
    lr: float,
    settings: Pretrain,
    kept_step: int = 0,
) -> None:
    """AdamW with warm-up and cosine decay, clipped gradients and an EMA that replaces the weights at the end.

    kept_step: the state after so many steps stays in OUT/STAGE, beside the last two
    """
    parameters = dict(modules.named_parameters())
    optimizers = _optimizers(parameters, lr, settings.bf16)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    states = Path(settings.out) / stage
    first = _restore(states, parameters, average, optimizers)
    generator = torch.Generator(settings.device)
    half = settings.bf16 or generator.device.type == "cuda"
    autocast = torch.autocast(generator.device.type, torch.bfloat16, enabled=half)
    attention = Fp32Attention() if settings.bf16 and generator.device.type == "cpu" else nullcontext()
    started = time.monotonic()
    for step in range(first, steps):
        generator.manual_seed(seeds.generator(settings.seed, stage, step).initial_seed())
        for group in [g for o in optimizers.values() for g in o.param_groups]:
            group["lr"] = lr * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        with autocast, attention:
            value = loss_at(step, generator)
        modules.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        ema_update(average.values(), parameters.values(), min(settings.ema_decay, (1 + step) / (10 + step)))
        if (step + 1) % settings.log_every == 0:
            print(f"{stage} {step + 1}/{steps} loss {value.item():.4f} {time.monotonic() - started:.0f}s", flush=True)
        if (step + 1) % settings.save_every == 0 or step + 1 in (kept_step, steps):
            moments = {n: optimizer_state.optimizer_tensors(o, _names(o, parameters)) for n, o in optimizers.items()}
            checkpoint.save(states, step + 1, {"weights": parameters, "average": average, **moments}, {})
            checkpoint.prune(states, keep_last=2, keep={kept_step})
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(average[name])


def _optimizers(parameters: dict[str, nn.Parameter], lr: float, bf16: bool) -> dict[str, torch.optim.Optimizer]:
    """Muon for the attention and feed-forward matrices of the transformer, AdamW for everything else."""
    matrices = [
        p for name, p in parameters.items() if "transformer_blocks" in name and "norm" not in name and p.dim() == 2
    ]
    taken = set(map(id, matrices))
    rest = [p for p in parameters.values() if id(p) not in taken]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    return {"adamw": adamw, **({"muon": Muon(matrices, lr, bf16=bf16)} if matrices else {})}


def _names(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Names in the optimizer's own order."""
    names = {id(p): name for name, p in parameters.items()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _restore(
    states: Path,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizers: dict[str, torch.optim.Optimizer],
) -> int:
    path = checkpoint.latest(states)
    if path is None:
        return 0
    tensors, _ = checkpoint.load(path)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors["weights"][name])
            average[name].copy_(tensors["average"][name])
    for name, optimizer in optimizers.items():
        optimizer_state.load_optimizer_tensors(optimizer, _names(optimizer, parameters), tensors[name])
    return checkpoint.iteration_of(path)
