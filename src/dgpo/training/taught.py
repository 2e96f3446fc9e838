"""Rollouts that people judge: groups are drawn ahead and shown, and learned from once enough of them are answered.

Between two updates the trainer does one small piece of work at a time (`ready`), so that it hears Ctrl-C and requests
while it waits: it draws the groups that nobody has answered yet, `human.ahead` of them, and comparisons of the base
with the trained model. An update takes `num_groups` newly answered groups and `human.reuse` earlier ones. DGPO's loss
noises x0 afresh, so a group that older weights drew is worth learning from again.

Everything that a resumed run needs is in the run folder (teach/): drawn groups keep their x0, and answers their file.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dgpo import distributed
from dgpo.config import TRAINED
from dgpo.core import seeds
from dgpo.data.prompts import PromptSet
from dgpo.data.sampler import PromptSampler
from dgpo.models.text_cache import CondCache
from dgpo.rewards.base import RewardError
from dgpo.run.console import say
from dgpo.run.stopwatch import Stopwatch
from dgpo.teach.groups import BLIND, LATENT_SPACE, TRAIN, Group, sha256
from dgpo.teach.learned import Lessons, Update
from dgpo.training.compare import with_advantages
from dgpo.training.draw import draw, for_evaluation
from dgpo.training.setup import Inputs, Setup
from dgpo.training.sources import Sampled, Stored, of_stored
from dgpo.types import Rollout
from dgpo.utils.people import WAITING
from dgpo.utils.pictures import to_png

PAUSE = 0.1
"""Seconds between two looks for answers."""
TRIES = 10
"""Groups in a row of which another reward drops pictures, after which the run gives up."""


class Lesson(NamedTuple):
    """The groups of an update, and what their pictures earned."""

    new: list[int]
    earlier: list[int]
    rewards: dict[int, list[float]]
    scores: dict[int, dict[str, list[float]]]
    shown: int  # images that were drawn for people since the last update, also before a stop


class New(NamedTuple):
    """A group that is to be drawn."""

    kind: str  # train or blind
    number: int
    before: int  # groups of its kind that there are


class Task(NamedTuple):
    """The next piece of work. Both None: there is nothing to do but wait."""

    lesson: Lesson | None = None
    draw: New | None = None


class Taught:
    """Shows groups to people and returns those that they answered."""

    def __init__(self, setup: Setup, encode: CondCache, clock: Stopwatch, run: Path) -> None:
        inputs, config = setup.inputs, setup.config
        self._model, self._rollout_model, self._config = setup.model, setup.rollout_model, config
        self._encode, self._clock = encode, clock
        self._sampled = Sampled(self._rollout_model, inputs.reward, inputs.prompts, encode, config, clock)
        self.sampler = self._sampled.sampler
        self._held_out = held_out(inputs)
        self._lessons = Lessons(run, config.rewards)
        self._used: set[int] | None = None  # groups that were learned from
        self._lesson: Lesson | None = None  # the next one
        self._unshown = 0  # images drawn since the last update, of groups that nobody was shown
        self._dropped = 0  # groups, since the last that was shown
        if distributed.is_main():
            (run / LATENT_SPACE).parent.mkdir(exist_ok=True)
            (run / LATENT_SPACE).write_text(json.dumps(self._rollout_model.latent_space) + "\n", encoding="utf-8")
            self._lessons.groups.tidy()
            self._lessons.groups.all()
            for why in self._lessons.groups.damaged.values():
                say(f"warning: the run goes on without a group: {why}")

    def ready(self, iteration: int) -> bool:
        """Do the next piece of work, and return whether the answers for this iteration are there."""
        mine = distributed.together(lambda: [self._task(iteration)] if distributed.is_main() else [])
        task: Task = distributed.gather_objects(mine)[0]
        self._lesson = task.lesson
        if task.draw is not None:
            (self._compare if task.draw.kind == BLIND else self._show)(task.draw, iteration)
        elif task.lesson is None:
            time.sleep(PAUSE)
        return task.lesson is not None

    def next(self, iteration: int) -> Rollout:
        """Return the rollout of the answers that `ready` found."""
        assert self._lesson is not None, "asked for before it was ready"
        lesson, self._lesson = self._lesson, None
        if distributed.is_main():
            self._lessons.updates.add(Update(iteration, tuple(lesson.new), tuple(lesson.earlier)))
            self._used = (self._used or set()) | {*lesson.new}
        rollout = self._rollout(lesson, iteration)
        self._unshown = 0
        return with_advantages(rollout, self._config)

    def _task(self, iteration: int) -> Task:
        """What is to be done now; the main process decides."""
        config, lessons = self._config, self._lessons
        if self._used is None:
            self._used = {number for update in lessons.updates.before(iteration) for number in update.new}
        teaching = lessons.teaching()
        new = [number for number in teaching if number not in self._used]
        self._clock.tell(WAITING, min(len(new), config.num_groups), config.num_groups)
        if len(new) >= config.num_groups:
            return Task(lesson=self._lesson_of(new[: config.num_groups], teaching, iteration))
        drawn = Counter(group.kind for group in lessons.groups.all().values())
        if self._compares(iteration, drawn[BLIND]):
            return Task(draw=New(BLIND, lessons.next_number(), drawn[BLIND]))
        if len(lessons.waiting()) < config.human.ahead:
            return Task(draw=New(TRAIN, lessons.next_number(), drawn[TRAIN]))
        return Task()

    def _lesson_of(self, new: list[int], teaching: Sequence[int], iteration: int) -> Lesson:
        """The new groups and a share of the earlier ones, which the seed draws."""
        assert self._used is not None
        before = [number for number in teaching if number in self._used]
        rng = seeds.generator(self._config.seed, "earlier groups", iteration)
        order = torch.randperm(len(before), generator=rng)[: self._config.human.reuse].tolist()
        earlier = sorted(before[place] for place in order)
        answered = self._lessons.answered()
        scores = {number: self._lessons.scores(number, answered[number]) or {} for number in new + earlier}
        rewards = {number: self._lessons.rewards(own) for number, own in scores.items()}
        groups = self._lessons.groups.all().values()
        shown = sum(group.size for group in groups if group.kind == TRAIN and group.iteration == iteration)
        return Lesson(new, earlier, rewards, scores, shown)

    def _compares(self, iteration: int, compared: int) -> bool:
        """Whether a comparison is due: one for every so many answers, once there was an update."""
        every = self._config.human.blind_every
        if not every or not iteration or not len(self._held_out) or "ref" not in self._model.weights.names:
            return False
        return compared < len(self._lessons.answered()) // every

    def _show(self, new: New, iteration: int) -> None:
        """Draw a group and let people see it, with what other rewards say."""
        config = self._config
        self.sampler.position = max(self.sampler.position, new.before)  # a resumed run goes on with other prompts
        drawn = self._sampled.sample([0], new.number, config.algorithm.rollout_weights(iteration))
        rows = [*zip(drawn.prompts, drawn.metadata)]
        prompt, metadata = distributed.gather_objects(rows)[0]
        x0, images = distributed.all_gather_rows(drawn.x0), distributed.all_gather_rows(drawn.images)
        scores = {name: distributed.all_gather_rows(score).tolist() for name, score in drawn.scores.items()}
        dropped = bool(distributed.all_gather_rows(drawn.rewards).isnan().any())
        self._dropped = self._dropped + 1 if dropped else 0
        self._unshown += config.group_size * dropped
        if self._dropped == TRIES:
            raise distributed.shared(
                RewardError(
                    f"{TRIES} groups in a row had a picture that got no reward, and such a group is not shown to "
                    "people: the rewards beside human failed, and their policy drops what fails. Prompts and images "
                    "are kept in failures/ of the run; mend and resume"
                )
            )
        if distributed.is_main() and not dropped:
            pictures = [to_png(image) for image in images]
            group = Group(
                number=new.number,
                kind=TRAIN,
                prompt=prompt,
                metadata=metadata,
                iteration=iteration,
                images=tuple(map(sha256, pictures)),
                scores={name: score for name, score in scores.items() if not any(map(math.isnan, score))},
            )
            self._lessons.groups.add(group, pictures, x0)

    def _compare(self, new: New, iteration: int) -> None:
        """Draw a held-out prompt by the base and the averaged weights, from the same noise, in an order of chance."""
        model, config = self._model, self._config
        order = PromptSampler(len(self._held_out), config.seed)
        order.position = new.before
        some = self._held_out.subset(order.next(1))
        cond = self._encode(some.prompts)

        def picture(weights: str) -> bytes:
            stream = seeds.generator(config.seed, "comparison", new.number)
            (drawn,) = draw(model, cond, [stream], for_evaluation(config.sampling), weights)
            return to_png(drawn.images[0])

        sides = [picture("ref"), picture("ema")]
        now = int(torch.randint(2, (1,), generator=seeds.generator(config.seed, "sides", new.number)))
        pictures = sides if now else sides[::-1]
        if distributed.is_main():
            group = Group(
                number=new.number,
                kind=BLIND,
                prompt=some.prompts[0],
                metadata=some.metadata[0],
                iteration=iteration,
                images=tuple(map(sha256, pictures)),
                now=now,
            )
            self._lessons.groups.add(group, pictures, None)

    def _rollout(self, lesson: Lesson, iteration: int) -> Rollout:
        """This rank's share of the images of a lesson."""
        model, groups = self._rollout_model, self._lessons.groups

        def stored(number: int) -> Stored:
            group = groups.all()[number]
            return Stored(
                group.prompt,
                group.metadata,
                torch.tensor(lesson.rewards[number]),
                {name: torch.tensor(score) for name, score in lesson.scores[number].items()},
                lambda members: groups.x0(number)[members].to(model.device),
            )

        own = distributed.together(lambda: [stored(number) for number in lesson.new + lesson.earlier])
        rollout = of_stored(own, iteration, model, self._encode, self._config, self._clock)
        return rollout._replace(drawn=lesson.shown + self._unshown)


def held_out(inputs: Inputs) -> PromptSet:
    """The evaluated prompts that never train."""
    trained = {*inputs.prompts.prompts}
    sets = [some for name, some in inputs.eval_sets.items() if inputs.eval_sources[name] != TRAINED]
    rows = [(p, m) for some in sets for p, m in zip(some.prompts, some.metadata) if p not in trained]
    return PromptSet([prompt for prompt, _ in rows], [metadata for _, metadata in rows])
