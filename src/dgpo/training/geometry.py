"""What one process does in an iteration, in numbers, by the rules of `schedule.py`.

Where images do not divide evenly the numbers are those of the largest share. Where the loop decides by scores they are
the most that can be: groups drawn again may all come to one process, and images chosen by their advantages may all
train in one update.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dgpo.config import Config
from dgpo.distributed import shard_of
from dgpo.training import schedule


@dataclass(frozen=True)
class Geometry:
    """One process's share of an iteration."""

    processes: int
    drawn: int  # images of a rollout before any group is drawn again
    images: int  # of a rollout, in the end
    trained: int  # of them
    update_images: int  # that train in one update
    group: int  # images of a group in one update
    sampling_batch: int
    micro_batch: int
    group_batch: int | None  # images of a backward while the gradient noise scale is measured; None: never
    splits: bool  # whether groups may be spread over micro-batches or processes, which takes a pass for their totals
    points: int  # per update
    updates: int
    old_updates: int  # of them, long after the start, that evaluate `old`
    solver_calls: int  # network calls for one image's sampling, guidance not counted; 0: nothing is sampled

    @property
    def micro_batches(self) -> int:
        return math.ceil(self.update_images / self.micro_batch)

    @property
    def backwards(self) -> int:
        """Backward passes of an optimizer step."""
        return self.points * self.micro_batches


def geometry(config: Config, processes: int) -> Geometry:
    """Cut an iteration up as the loop does."""
    c, group = replace(config, num_groups=schedule.update_groups(config)), schedule.trained_images(config)
    of_updates = range(c.updates_per_rollout if c.split_updates else 1)
    shares = [[*held_images(c, rank, processes)] for rank in range(processes)]
    per_update = [[_per_group(c, share, update) for update in of_updates] for share in shares]
    whole = [_per_group(c, [*held_images(c, 0, 1)], update) for update in of_updates]
    largest = max(max(sizes.values(), default=0) for sizes in whole)
    rows = max(sum(sizes.values()) for share in per_update for sizes in share)
    trained = max(sum(min(group, n) for n in Counter(g for g, _ in share).values()) for share in shares)
    drawn = math.ceil(config.num_groups * c.group_size / processes)
    micro = min(rows, schedule.micro_batch(c, rows, largest))
    first = schedule.HORIZON * c.updates_per_rollout
    olds = sum(not schedule.old_is_policy(c, first + update) for update in range(c.updates_per_rollout))
    return Geometry(
        processes=processes,
        drawn=drawn,
        images=max(map(len, shares)),
        trained=trained,
        update_images=rows,
        group=largest,
        sampling_batch=min(c.sampling.batch_size, drawn),
        micro_batch=micro,
        group_batch=_measured_group(c, processes, whole),
        splits=c.algorithm.couples_group and (micro % largest > 0 or _may_cut(c, processes, micro < rows)),
        points=c.algorithm.points_per_update(c.sampling.num_inference_steps),
        updates=c.updates_per_rollout,
        old_updates=olds if "old" in c.algorithm.needs else 0,
        solver_calls=schedule.solver_calls(c),
    )


def held_images(config: Config, rank: int, processes: int) -> Iterator[tuple[int, int]]:
    """Group and number of each image that a process holds after a rollout, if all groups of others are drawn again."""
    c, size, groups = config, config.group_size, [*range(config.num_groups)]
    for attempt in range(1 + c.redraw_groups):
        rows = range(len(groups) * size)[shard_of(len(groups) * size, rank, processes)]
        for row in rows:
            group = groups[row // size]
            yield group, schedule.image_number(c, attempt, group, row % size)
        own = {groups[row // size] for row in rows}
        groups = [group for group in groups if group not in own]
        if not groups:
            break


def network_forwards(config: Config, processes: int = 1) -> int:
    """Count the forward passes of one image through the network in an iteration; a backward pass counts as two.

    Long after the start, over all processes, without what is drawn again and with all that can train.
    """
    c, g = config, geometry(config, processes)
    images = (
        schedule.update_groups(c) * schedule.trained_images(c) * g.points
    )  # of an update, or of all that have parts of them
    of_updates = [
        schedule.point_forwards(c.algorithm, c.sampling.guidance_scale, g.splits, old_is_policy=update >= g.old_updates)
        for update in range(g.updates)
    ]
    trained = images * sum(of_updates) // (g.updates if c.split_updates else 1)
    return c.num_groups * c.group_size * schedule.sampling_forwards(c) + trained


def _per_group(config: Config, images: list[tuple[int, int]], update: int) -> Counter[int]:
    """Group -> its images that train in an update, at most; groups without any are left out."""
    sizes = Counter(group for group, image in images if schedule.in_update(config, image, update))
    return Counter({group: min(n, schedule.trained_images(config)) for group, n in sizes.items()})


def _measured_group(config: Config, processes: int, sizes: list[Counter[int]]) -> int | None:
    """Images of a group, at most, in a step that measures the noise scale; None: no step can.

    sizes: images of each group, for each update of an iteration that has its own images
    """
    chosen = schedule.trained_images(config) < config.group_size  # which of them are in an update, scores decide
    measured = [
        max(groups.values())
        for step in range(config.updates_per_rollout * max(1, config.noise_scale_every))
        if schedule.measures_noise(config, step, processes)
        and (groups := sizes[step % config.updates_per_rollout % len(sizes)])
        and (chosen or len({*groups.values()}) == 1)
    ]
    return max(measured, default=None)


def _may_cut(config: Config, processes: int, several: bool) -> bool:
    """Whether a group's images can lie on several processes, or in several micro-batches of whole groups."""
    if several and any("drop" in policy for policy in config.reward_failures.values()):
        return True  # a group that lost an image no longer fits where the others do
    drawn = range(1, config.num_groups + 1) if config.redraw_groups else [config.num_groups]
    return any(schedule.straddling(groups, config.group_size, processes) for groups in drawn)
