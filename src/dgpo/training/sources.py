"""Where rollouts come from: sampled by the model and scored by rewards, or replayed from a dataset.

Sampled: prompts -> conditioning -> noise -> solver -> x0 -> images -> rewards -> advantages. An image is a function of
(seed, iteration, group, member): it has its own noise generator, and each prompt is encoded alone. Neither the
sampling batch nor the spread over ranks nor a resume changes it. Only x0 is kept, since most losses train at noise
levels of their own; a policy gradient also gets the stochastic sampler's path. Rewards score each batch of images while
the next is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dgpo import distributed
from dgpo.config import Config
from dgpo.core import seeds
from dgpo.core.advantages import unequal_groups
from dgpo.data.groups import GroupDataset
from dgpo.data.prompts import PromptSet
from dgpo.data.sampler import PromptSampler
from dgpo.models import Cond, VelocityModel
from dgpo.models.text_cache import CondCache
from dgpo.rewards.combine import RewardSet
from dgpo.rewards.scoring import Scored
from dgpo.run.stopwatch import Stopwatch
from dgpo.training import schedule
from dgpo.training.compare import Compared, compared, with_advantages
from dgpo.training.draw import Drawn, counted, draw, grid
from dgpo.training.split_groups import on_several_ranks, scored_whole
from dgpo.types import Replaced, Rollout, Sde, take


class Source(Protocol):
    """Yields one rollout after the other. `sampler.position` is its whole state."""

    sampler: PromptSampler

    def ready(self, iteration: int) -> bool:
        """Whether `next` has what it needs. Where it has not, do one small piece of the work towards it, or wait."""
        ...

    def next(self, iteration: int) -> Rollout:
        """Return the rollout of this iteration, counted from 0: this rank's share of it."""
        ...


class Sampled:
    """Draws a group of images for each of the next prompts and scores them.

    Groups whose images all earned the same are drawn again for other prompts, `config.redraw_groups` times at most.
    """

    def __init__(
        self,
        model: VelocityModel,
        reward: RewardSet,
        prompts: PromptSet,
        encode: CondCache,
        config: Config,
        clock: Stopwatch,
    ) -> None:
        self.sampler = PromptSampler(len(prompts), config.seed)
        self._model, self._reward, self._prompts = model, reward, prompts
        self._encode, self._config, self._clock = encode, config, clock

    def ready(self, iteration: int) -> bool:
        """Always."""
        return True

    def next(self, iteration: int) -> Rollout:
        config = self._config
        generator = seeds.generator(config.seed, "sampler", iteration)
        sde = config.algorithm.sampler(iteration, config.sampling.num_inference_steps, generator)
        groups, rollout = list(range(config.num_groups)), None
        for attempt in range(1 + config.redraw_groups):
            drawn = self.sample(groups, iteration, config.algorithm.rollout_weights(iteration), attempt, sde)
            rollout = drawn if rollout is None else rollout.cat(drawn)
            if attempt < config.redraw_groups:
                whole = compared(rollout, config)
                unequal = unequal_groups(whole.rewards, whole.group_index, config.num_groups)
                groups = torch.nonzero(~unequal).flatten().tolist()
                if not groups:
                    break
                rollout = let_go(rollout, ~unequal, whole)
        assert rollout is not None
        return with_advantages(rollout, config)

    def sample(
        self, groups: Sequence[int], iteration: int, weights: str, attempt: int = 0, sde: Sde | None = None
    ) -> Rollout:
        """Draw and score `group_size` images for each of the next prompts, as the groups of these numbers."""
        model, config, clock = self._model, self._config, self._clock
        size, sampling = config.group_size, config.sampling
        batch = self._prompts.subset(self.sampler.next(len(groups)))
        everyone = torch.tensor([(place, member) for place in range(len(batch)) for member in range(size)])
        mine = everyone[distributed.shard(len(everyone))]
        rows = batch.subset(mine[:, 0].tolist())
        group_index = torch.tensor(groups)[mine[:, 0]]
        image_index = schedule.image_number(config, attempt, group_index, mine[:, 1])
        streams = [seeds.generator(config.seed, "rollout", iteration, *divmod(i, size)) for i in image_index.tolist()]
        with clock.phase("rollout"):
            cond = distributed.together(lambda: self._encode(rows.prompts).to(model.device))
        split = on_several_ranks(len(batch), size)

        def drawn_and_scored() -> tuple[Drawn, Scored]:
            batches = draw(model, cond, streams, sampling, weights, sde)
            drawn: list[Drawn] = []
            with self._reward.scoring(rows.prompts, rows.metadata, mine[:, 0], elsewhere=split) as scoring:
                with clock.phase("rollout"):
                    for part in counted(batches, lambda images: clock.tell("sampling", images, len(rows))):
                        drawn.append(part)
                        scoring.add(part.images)
                with clock.phase("reward"):
                    clock.tell("scoring", 0, 0)
                    return Drawn.cat(drawn), scoring.result()

        drawn, scored = distributed.together(drawn_and_scored)
        with clock.phase("reward"):
            scored = scored_whole(self._reward, scored, split, batch, mine, drawn.images)
        clock.add("reward_busy", scored.busy)
        return Rollout(
            iteration=iteration,
            num_groups=config.num_groups,
            group_sizes=torch.full((config.num_groups,), size, device=model.device),
            prompts=rows.prompts,
            metadata=rows.metadata,
            group_index=group_index.to(model.device),
            image_index=image_index.to(model.device),
            cond=cond,
            sigmas=grid(model, sampling),
            guidance_scale=sampling.guidance_scale,
            x0=drawn.x0,
            images=drawn.images,
            scores=scored.scores,
            rewards=self._reward.weighted(scored.scores, rows.metadata).to(model.device),
            advantages=torch.zeros(len(rows), device=model.device),
            trained=torch.ones(len(rows), dtype=torch.bool, device=model.device),
            trajectory=drawn.trajectory,
            drawn=len(everyone),
            failures=scored.failures,
        )


def let_go(rollout: Rollout, equal: Tensor, whole: Compared) -> Rollout:
    """Let groups go that teach nothing, and remember what they earned.

    equal: (num_groups,) bool, those groups: of equal rewards, or with fewer than two images to compare
    """
    gone = equal[rollout.group_index]
    scores = {name: take(score, gone) for name, score in rollout.scores.items()}
    count = len(whole.group_index[equal[whole.group_index]].unique())
    remembered = Replaced(count, rollout.rewards[gone], scores)
    return rollout.rows(~gone)._replace(replaced=(*rollout.replaced, remembered))


class Replayed:
    """Reads the next groups of a dataset, as `Sampled` would have returned them."""

    def __init__(
        self, model: VelocityModel, dataset: GroupDataset, encode: CondCache, config: Config, clock: Stopwatch
    ) -> None:
        self.sampler = PromptSampler(len(dataset.prompts), config.seed)
        self._model, self._dataset = model, dataset
        self._encode, self._config, self._clock = encode, config, clock

    def ready(self, iteration: int) -> bool:
        """Always."""
        return True

    def next(self, iteration: int) -> Rollout:
        dataset, model, config = self._dataset, self._model, self._config
        stored = [
            Stored(
                dataset.prompts.prompts[group],
                dataset.prompts.metadata[group],
                dataset.rewards(group),
                dataset.scores(group),
                partial(dataset.x0, group, model=model),
            )
            for group in self.sampler.next(config.num_groups)
        ]
        return with_advantages(of_stored(stored, iteration, model, self._encode, config, self._clock), config)


class Stored(NamedTuple):
    """A group whose images were drawn before."""

    prompt: str
    metadata: dict[str, Any]
    rewards: Tensor  # (G,) fp32, CPU
    scores: dict[str, Tensor]  # name -> (G,)
    x0: Callable[[Sequence[int]], Tensor]  # members -> (len(members), *latent), on the model's device


def of_stored(
    groups: Sequence[Stored],
    iteration: int,
    model: VelocityModel,
    encode: CondCache,
    config: Config,
    clock: Stopwatch,
) -> Rollout:
    """This rank's share of the images of these groups, without advantages. NaN where a group lacks a score."""
    device, sizes = model.device, [len(group.rewards) for group in groups]
    everyone = [(place, member) for place, size in enumerate(sizes) for member in range(size)]
    mine = everyone[distributed.shard(len(everyone))]
    places = dict.fromkeys(place for place, _ in mine)
    members = {place: [member for other, member in mine if other == place] for place in places}
    prompts = [groups[place].prompt for place, _ in mine]
    group_index, member = torch.tensor(mine).unbind(1)

    def labels(of: Callable[[Stored], Tensor]) -> Tensor:
        return torch.cat([of(groups[place])[members[place]] for place in places])

    def read() -> tuple[Tensor, Cond]:
        x0 = torch.cat([groups[place].x0(members[place]) for place in places])
        return x0, encode(prompts).to(device)

    with clock.phase("rollout"):
        clock.tell("reading", 0, len(mine))
        x0, cond = distributed.together(read)
    names = dict.fromkeys(name for group in groups for name in group.scores)
    return Rollout(
        iteration=iteration,
        num_groups=len(groups),
        group_sizes=torch.tensor(sizes, device=device),
        prompts=prompts,
        metadata=[groups[place].metadata for place, _ in mine],
        group_index=group_index.to(device),
        image_index=(group_index * config.group_size + member).to(device),
        cond=cond,
        sigmas=grid(model, config.sampling),
        guidance_scale=config.sampling.guidance_scale,
        x0=x0,
        images=torch.empty(len(mine), 0),
        scores={name: labels(partial(_score, name)) for name in names},
        rewards=labels(lambda group: group.rewards).to(device),
        advantages=torch.zeros(len(mine), device=device),
        trained=torch.ones(len(mine), dtype=torch.bool, device=device),
    )


def _score(name: str, group: Stored) -> Tensor:
    """(G,)."""
    return group.scores.get(name, torch.full_like(group.rewards, torch.nan))
