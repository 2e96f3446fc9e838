"""What an iteration of the loop costs beyond the network calls that it cannot do without: in time and in memory.

In each round, in turn: one iteration (rollout, rewards, update, averages), and the bare calls on tensors of the same
shapes: the sampling forwards, the decodes, the frozen forwards, the trained forwards with their backwards. Time is
told by the wall clock and as the process's CPU time, which other work on the machine disturbs less. Memory is the peak
of one iteration over that of the bare calls, weights of all sets included, plus the optimizer's two moments.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgpo.config import Config, to_dict
from dgpo.core.flow import interpolate, velocity_target
from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.models.text_cache import CondCache
from dgpo.run import folder as runfolder
from dgpo.run.stopwatch import Stopwatch
from dgpo.training.draw import at_rollout_size, chunks, grid
from dgpo.training.optim import make_optimizer
from dgpo.training.placing import with_offload
from dgpo.training.setup import load, trained_rewards
from dgpo.training.sources import Sampled
from dgpo.training.state import State
from dgpo.training.update import improve, to_train
from dgpo.utils.devices import device_of, precision_of
from dgpo.utils.peak_memory import peak_memory


def measure_overhead(config: Config, rounds: int, path: Path) -> dict[str, Any]:
    """Measure an iteration of `config`, print every round, write `path`; returns what was written.

    All images train and none is drawn again: otherwise the scores would decide how much there is to do.
    """
    config = replace(config, train_images=None, drop_equal_groups=False, redraw_groups=0)
    prompts = load_prompts(config.prompts)
    device = torch.device(device_of(config.device))
    config = replace(config, dtype=precision_of(config.dtype, device))
    config = with_offload(config, device, prompts.prompts)
    model = at_rollout_size(load(config, device), config.sampling)
    result = measured(config, model, prompts, rounds, Stopwatch(device))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    memory = result["memory"]
    print(
        f"median ratio {result['median']['wall']:.3f} by the clock, {result['median']['cpu']:.3f} in CPU time; "
        f"peak memory {memory['iteration'] / 2**20:.0f} MiB, {memory['ratio']:.3f} of what it needs"
    )
    return result


def measured(config: Config, model: Any, prompts: PromptSet, rounds: int, clock: Stopwatch) -> dict[str, Any]:
    """The same of a model that is there. clock: hears the phases of each iteration."""
    loop = _Loop(config, model, prompts, clock)
    loop.iteration()  # warm up
    _bare(config, model, prompts)
    rows = []
    for number in range(1, rounds + 1):
        ours, phases = _timed(model, loop.iteration)
        bare, _ = _timed(model, lambda: _bare(config, model, prompts))
        ratios = {key: ours[key] / bare[key] for key in ours}
        rows.append({"iteration": ours, "bare": bare, "ratios": ratios, "phases": phases})
        seconds = f"{ours['wall']:.2f} s / {bare['wall']:.2f} s"
        print(f"round {number}: {seconds} = {ratios['wall']:.3f}, CPU time {ratios['cpu']:.3f}", flush=True)
    memory = _memory(config, model, prompts, loop)
    return {
        "config": to_dict(replace(config, out=None)),
        "threads": torch.get_num_threads(),
        "median": {key: statistics.median(row["ratios"][key] for row in rows) for key in ("wall", "cpu")},
        "memory": memory,
        "rounds": rows,
        "environment": runfolder.conditions(),
    }


class _Loop:
    """The training loop's own pieces, one iteration at a time; an iteration without a noise-scale measurement."""

    def __init__(self, config: Config, model: Any, prompts: PromptSet, clock: Stopwatch) -> None:
        self.config, self.model, self.encode = replace(config, noise_scale_every=0), model, CondCache(model)
        self.optimizer, self._rewards, self._prompts = make_optimizer(model, config), trained_rewards(config), prompts
        self.state, self.number = State(), 0
        self.hear(clock)
        model.weights.stepped()  # so that `old` costs its forwards from the first iteration on

    def hear(self, clock: Stopwatch) -> None:
        """Tell this clock of the phases from now on."""
        self.clock = clock
        self.source = Sampled(self.model, self._rewards, self._prompts, self.encode, self.config, clock)

    def iteration(self) -> dict[str, float]:
        """Run the next one; seconds by phase."""
        rollout = self.source.next(self.number)
        with self.clock.phase("update"):
            improve(self.model, self.optimizer, to_train(rollout, self.encode, self.config), self.state, self.config)
        self.number += 1
        return self.clock.read()


def _bare(config: Config, model: Any, prompts: PromptSet) -> None:
    """The network calls of one iteration, on random tensors."""
    images, sampling, algorithm = config.num_groups * config.group_size, config.sampling, config.algorithm
    cond = model.encode(prompts.prompts[: config.num_groups]).repeat(config.group_size)
    x = torch.randn(images, *model.latent_shape, device=model.device)
    with torch.no_grad():
        for rows in chunks(images, sampling.batch_size):
            for sigma in grid(model, sampling)[:-1]:
                model.velocity(x[rows], sigma.expand(rows.stop - rows.start), cond[rows], sampling.guidance_scale)
            model.decode(x[rows])
    noise, t = torch.randn_like(x), torch.rand(images, device=model.device)
    x_t, target = interpolate(x, noise, t), velocity_target(x, noise)
    scales = {"ref": algorithm.ref_guidance(sampling.guidance_scale)}
    policy_scale = algorithm.policy_guidance(sampling.guidance_scale)
    micro = list(chunks(images, config.micro_batch_size or images))
    for _ in range(config.updates_per_rollout * algorithm.points_per_update(sampling.num_inference_steps)):
        for rows in micro:
            with torch.no_grad():
                for name in algorithm.needs:
                    model.velocity(x_t[rows], t[rows], cond[rows], scales.get(name, policy_scale), name)
        for rows in micro:
            v = model.velocity(x_t[rows], t[rows], cond[rows], policy_scale)
            (v - target[rows]).square().mean().backward()
    for parameter in model.weights.parameters():
        parameter.grad = None


def _timed(model: Any, call: Any) -> tuple[dict[str, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    answer = call()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, answer


def _memory(config: Config, model: Any, prompts: PromptSet, loop: _Loop) -> dict[str, float]:
    """Bytes at the peak of one iteration, and of what it cannot do without."""
    moments = [value for state in loop.optimizer.state.values() for value in state.values()]
    weights = list(_tensors_of(model))
    loop.hear(Stopwatch(model.device))  # one that measures memory by phase would forget the phases before
    with peak_memory([*weights, *moments], model.device) as iteration:
        loop.iteration()
    with peak_memory(weights, model.device) as bare:
        _bare(config, model, prompts)
    # CUDA counts what is there already, the moments too
    needed = bare.bytes + (0 if model.device.type == "cuda" else sum(moment.nbytes for moment in moments))
    return {"iteration": iteration.bytes, "needed": needed, "ratio": iteration.bytes / needed}


def _tensors_of(model: Any) -> Iterable[Tensor]:
    """Every weight of the model: frozen parts and all sets."""
    for part in model.pipeline.components.values():
        if isinstance(part, nn.Module):
            yield from part.state_dict(keep_vars=True).values()
    for name in model.weights.names:
        yield from model.weights.tensors(name).values()
