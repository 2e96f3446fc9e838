"""A task small enough to learn in seconds, for any Algorithm: points on a ring, one prompt for each place.

The base draws crisp points of a mixture of MODES Gaussians and ignores its prompt, as a model that paints well and
listens badly. Its velocity is known in closed form; the policy adds a small network that starts at zero, so that the
reference is exact without pretraining. The reward is how near a point lies to the place that its prompt names.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from dgpo.algorithms.base import Algorithm
from dgpo.core.ema import ema_update
from dgpo.core.seeds import generator, randn_rows
from dgpo.core.solvers import flow_sigmas, sde_solve, solve
from dgpo.types import Rollout, TrainPoint, Trajectory, Velocities

MODES, RADIUS, STD = 6, 2.0, 0.25
STEPS = 10
ANGLES = torch.arange(MODES) * (2 * math.pi / MODES)
CENTRES = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)  # (MODES, 2)


def base_velocity(x: Tensor, t: Tensor) -> Tensor:
    """Velocity of the mixture: each Gaussian's own, weighted by its posterior. x: (n, 2); t: (n,); returns (n, 2)."""
    t = t[:, None, None]
    offset = x[:, None] - (1 - t) * CENTRES  # (n, MODES, 2)
    variance = (1 - t) ** 2 * STD**2 + t**2
    posterior = torch.softmax(-offset.square().sum(-1, keepdim=True) / (2 * variance), 1)
    own = -CENTRES + (t - (1 - t) * STD**2) / variance * offset
    return (posterior * own).sum(1)


class ToyModel:
    """The base plus one network per trained weight set."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = nn.Sequential(nn.Linear(3 + MODES, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        nn.init.zeros_(policy[-1].weight)
        nn.init.zeros_(policy[-1].bias)
        self.networks = {"policy": policy, "old": copy.deepcopy(policy).requires_grad_(False)}

    def velocity(self, x_t: Tensor, t: Tensor, cond: Tensor, weights: str = "policy") -> Tensor:
        """x_t: (n, 2); t: (n,); cond: (n,) int64 places; returns (n, 2)."""
        v = base_velocity(x_t, t)
        if weights == "ref":
            return v
        prompt = nn.functional.one_hot(cond, MODES).float()
        return v + self.networks[weights](torch.cat([x_t, t[:, None], prompt], 1))


def reward(x0: Tensor, place: Tensor) -> Tensor:
    """x0: (B, 2); place: (B,) int64; returns (B,) in [0, 1], 1 at the centre, about 0 at any other place."""
    return torch.exp(-(x0 - CENTRES[place]).square().sum(1) / 2)


@torch.no_grad()
def collect(
    model: ToyModel, algorithm: Algorithm, iteration: int, seed: int, num_groups: int, group_size: int, shuffle: bool
) -> Rollout:
    """One rollout by the algorithm's own sampler and weights; `shuffle` breaks the tie of rewards to images."""
    size = num_groups * group_size
    group_index = torch.arange(num_groups).repeat_interleave(group_size)
    place = torch.randint(MODES, (num_groups,), generator=generator(seed, "prompts", iteration))[group_index]
    streams = [generator(seed, "rollout", iteration, row) for row in range(size)]
    noise, weights, trajectory = randn_rows(streams, (2,)), algorithm.rollout_weights(iteration), None

    def velocity(x, t):
        return model.velocity(x, t, place, weights)

    sigmas = flow_sigmas(STEPS)
    sde = algorithm.sampler(iteration, STEPS, generator(seed, "sampler", iteration))
    if sde is None:
        x0 = solve(velocity, noise, sigmas)
    else:
        x0, latents, log_probs = sde_solve(velocity, noise, sigmas, streams, sde.noise_level, sde.window, sde.noise)
        trajectory = Trajectory(latents, log_probs, sde)
    rewards = reward(x0, place)
    if shuffle:
        rewards = rewards[torch.randperm(size, generator=generator(seed, "shuffle", iteration))]
    advantages = algorithm.advantages(rewards, group_index, num_groups)
    trained = advantages != 0 if algorithm.skips_zero else torch.ones(size, dtype=torch.bool)
    return Rollout(
        iteration=iteration,
        num_groups=num_groups,
        group_sizes=torch.bincount(group_index[trained], minlength=num_groups),
        prompts=[f"place {number}" for number in place.tolist()],
        metadata=[{}] * size,
        group_index=group_index,
        image_index=torch.arange(size),
        cond=place,
        sigmas=sigmas,
        guidance_scale=1.0,
        x0=x0,
        images=torch.zeros(size, 3, 1, 1),
        scores={"near": rewards},
        rewards=rewards,
        advantages=advantages,
        trained=trained,
        trajectory=trajectory,
    )


def evaluate_point(model: ToyModel, algorithm: Algorithm, point: TrainPoint, rollout: Rollout) -> Velocities:
    """Every weight set that the algorithm needs, at one point."""
    with torch.no_grad():
        others = {name: model.velocity(point.x_t, point.t, rollout.cond, name) for name in algorithm.needs}
    return Velocities(model.velocity(point.x_t, point.t, rollout.cond), **others)


def train(
    algorithm: Algorithm,
    iterations: int,
    seed: int = 0,
    learning_rate: float = 3e-3,
    num_groups: int = 12,
    group_size: int = 12,
    updates: int = 1,
    shuffle: bool = False,
) -> tuple[ToyModel, list[dict[str, float]]]:
    """The training loop in small. Returns the model and the metrics of each iteration, means over points."""
    model, history = ToyModel(seed), []
    policy, old = model.networks["policy"], model.networks["old"]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate)
    for iteration in range(iterations):
        rollout = collect(model, algorithm, iteration, seed, num_groups, group_size, shuffle)
        rollout, logs = rollout.rows(rollout.trained), []
        for update in range(updates):
            for point in algorithm.points(rollout, generator(seed, "points", iteration, *[update] * (updates > 1))):
                loss, metrics = algorithm.loss(point, evaluate_point(model, algorithm, point, rollout), rollout)
                loss.backward()
                logs.append(metrics)
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if algorithm.old_follows == "step" or update + 1 == updates:
                ema_update(old.parameters(), policy.parameters(), algorithm.old_decay(iteration * updates + update))
        history.append({name: float(torch.stack([log[name] for log in logs]).mean()) for name in logs[0]})
    return model, history


@torch.no_grad()
def score(model: ToyModel, weights: str = "policy", samples_per_prompt: int = 64) -> float:
    """Mean reward over all prompts on noise that training never saw."""
    place = torch.arange(MODES).repeat_interleave(samples_per_prompt)
    noise = randn_rows([generator(0, "score", row) for row in range(len(place))], (2,))
    x0 = solve(lambda x, t: model.velocity(x, t, place, weights), noise, flow_sigmas(STEPS))
    return float(reward(x0, place).mean())
