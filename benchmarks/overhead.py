"""How much an iteration costs beyond the network calls it cannot do without.

    python benchmarks/overhead.py --recipe tiny --rounds 5

In each round, in turn: one iteration of the loop (rollout, rewards, update, averages), and the bare calls on tensors of
the same shapes in a plain script: the sampling forwards, the decodes, the frozen forwards, the trained forwards with
their backwards. Prints the ratio of every round; writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from dgpo import runfolder
from dgpo.core.flow import interpolate, velocity_target
from dgpo.data import PromptSampler, PromptSet, load_prompts
from dgpo.recipes import recipe
from dgpo.rewards.combine import RewardSet
from dgpo.rollout import CondCache, chunks, collect, grid
from dgpo.stopwatch import Stopwatch
from dgpo.train import State, improve, load, make_optimizer, to_train

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", default="tiny")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    config = recipe(given.recipe)
    prompts = load_prompts(config.prompts)
    model = load(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    loop = _Loop(config, model, prompts)
    loop.iteration(0), _bare(config, model, prompts)
    rows = []
    for number in range(1, given.rounds + 1):
        phases = loop.iteration(number)
        bare = _bare(config, model, prompts)
        rows.append({"iteration": phases.pop("total"), "bare": bare, **phases})
        print(
            f"round {number}: {rows[-1]['iteration']:.2f} s / {bare:.2f} s = {rows[-1]['iteration'] / bare:.3f}",
            flush=True,
        )
    ratios = sorted(row["iteration"] / row["bare"] for row in rows)
    result = {"recipe": given.recipe, "rounds": rows, "median_ratio": ratios[len(ratios) // 2], "ratios": ratios}
    result["environment"] = {k: v for k, v in runfolder.environment().items() if k != "command"}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"median ratio {result['median_ratio']:.3f}")


class _Loop:
    """The training loop's own pieces, one iteration at a time; an iteration without a noise-scale measurement."""

    def __init__(self, config, model, prompts) -> None:
        self.config, self.model, self.prompts = config, model, prompts
        self.reward, self.encode = RewardSet(config.rewards), CondCache(model)
        self.optimizer, self.sampler = make_optimizer(model, config), PromptSampler(len(prompts), 0)
        self.state, self.clock = State(step=1, old_is_policy=False), Stopwatch(model.device)

    def _draw(self, number: int) -> PromptSet:
        return self.prompts.subset(self.sampler.next(number))

    def iteration(self, number: int) -> dict[str, float]:
        started = time.perf_counter()
        config, algorithm = self.config, self.config.algorithm
        rollout = collect(self.model, algorithm, self.reward, self.encode, self._draw, config, number, self.clock)
        with self.clock.phase("update"):
            rollout = to_train(rollout, self.encode, config)
            improve(self.model, algorithm, self.optimizer, rollout, self.state, config)
        self.state.step += self.state.step % max(1, config.noise_scale_every) == 0
        return {"total": time.perf_counter() - started, **self.clock.read()}


def _bare(config, model, prompts) -> float:
    """Seconds of the network calls of one iteration, on random tensors."""
    images = config.num_groups * config.group_size
    cond = model.encode(prompts.prompts[: config.num_groups]).repeat(config.group_size)
    sigmas = grid(model, config.sampling)
    x = torch.randn(images, *model.latent_shape, device=model.device)
    needs = config.algorithm.needs
    started = time.perf_counter()
    with torch.no_grad():
        for rows in chunks(images, config.sampling.batch_size):
            for sigma in sigmas[:-1]:
                t = sigma.expand(rows.stop - rows.start)
                model.velocity(x[rows], t, cond[rows], config.sampling.guidance_scale)
            model.decode(x[rows])
    noise = torch.randn_like(x)
    t = torch.rand(images, device=model.device)
    x_t, target = interpolate(x, noise, t), velocity_target(x, noise)
    for _ in range(
        config.updates_per_rollout * config.algorithm.points_per_update(config.sampling.num_inference_steps)
    ):
        with torch.no_grad():
            for name in needs:
                model.velocity(
                    x_t,
                    t,
                    cond,
                    config.algorithm.ref_guidance(config.sampling.guidance_scale) if name == "ref" else 1.0,
                    name,
                )
        for rows in chunks(images, config.micro_batch_size or images):
            (model.velocity(x_t[rows], t[rows], cond[rows]) - target[rows]).square().mean().backward()
    for parameter in model.weights.parameters():
        parameter.grad = None
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
