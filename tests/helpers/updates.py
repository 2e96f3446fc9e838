"""Rollouts and updates of a tiny model, one step at a time, outside of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from runs import PROMPTS, REWARDS

from dgpo import Config, load_prompts
from dgpo.core import seeds
from dgpo.data.prompts import PromptSet
from dgpo.models.text_cache import CondCache
from dgpo.rewards.combine import RewardSet
from dgpo.run.stopwatch import Stopwatch
from dgpo.training.optim import make_optimizer
from dgpo.training.sources import Sampled
from dgpo.training.update import follow, learn
from dgpo.types import Rollout


class InOrder:
    """A sampler that hands out prompts as they stand."""

    def __init__(self) -> None:
        self.position = 0

    def next(self, number: int) -> list[int]:
        start, self.position = self.position, self.position + number
        return [*range(start, self.position)]


class Spy:
    """A model that counts its images by (weight set, guidance, with gradient), and may spoil them."""

    def __init__(self, model, spoil=lambda call, v: v):
        self._model, self._spoil = model, spoil
        self.images = Counter()
        self.trained = 0

    def __getattr__(self, name):
        return getattr(self._model, name)

    def velocity(self, x_t, t, cond, guidance_scale=1.0, weights="policy"):
        v = self._model.velocity(x_t, t, cond, guidance_scale, weights)
        self.images[weights, guidance_scale, v.requires_grad] += len(x_t)
        if v.requires_grad:
            self.trained += 1
            v = self._spoil(self.trained, v)
        return v


def source_of(model: Any, config: Config, reward: RewardSet, prompts: PromptSet, sampler: Any = None) -> Sampled:
    """A source whose prompts come as they stand, or from `sampler`."""
    source = Sampled(model, reward, prompts, CondCache(model), config, Stopwatch(model.device))
    source.sampler = sampler or InOrder()
    return source


def rollout_of(model: Any, config: Config) -> Rollout:
    """The first rollout, of the first prompts."""
    return source_of(model, config, RewardSet({"colour": 1.0}, REWARDS), load_prompts(PROMPTS)).next(0)


def updates(model, rollout, config, state, count=1):
    """Gradient and metrics of each of `count` updates on one rollout."""
    optimizer, found = make_optimizer(model, config), []
    for update in range(count):
        points = list(config.algorithm.points(rollout, seeds.generator(0, "points", update)))
        metrics = learn(model, optimizer, rollout, points, state, config)
        follow(model, config.algorithm.old_decay(state.step - 1))
        gradients = {k: p.grad.clone() for k, p in model.weights.named_parameters() if p.grad is not None}
        found.append((gradients, metrics))
    return found


def in_float64(model):
    """Let the network, every weight set of it, compute and answer in float64."""
    for name in model.weights.names:
        with model.weights.use(name):
            model.network.double()
    model._model._forward = lambda x_t, t, cond: model.network(
        hidden_states=x_t.double(),
        timestep=t * 1000,
        encoder_hidden_states=cond.tensors["prompt_embeds"].double(),
        pooled_projections=cond.tensors["pooled"].double(),
        return_dict=False,
    )[0]
    return model
