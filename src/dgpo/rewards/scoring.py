"""Rewards at work while the next images are sampled: each has a thread of its own, which takes its batches in order.

The scores are those of calls one after the other: the same batches in the same order for each reward, and nothing is
shared between them. A thread gains what its reward waits or computes outside of Python's lock (a server, a network in
torch, ONNX); pure Python competes with the sampler. On a GPU each reward has its own stream, so that a score does not
wait for the sampler's kernels. A thread cannot be ended from outside, so that a reward which may hang needs a time
limit of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgpo.rewards.base import Batch, Reward, Seen, needs_group
from dgpo.rewards.failures import Answer, Policy, answer, joined
from dgpo.utils.devices import on_a_stream_of_its_own


class Scored(NamedTuple):
    """The scores of some images, and what it took to get them."""

    scores: dict[str, Tensor]  # name -> (B,) fp32, CPU; NaN where the reward does not apply, or dropped the image
    failures: Counter[str]  # retries/NAME: calls repeated; dropped/NAME: images that got no score
    busy: float  # seconds in rewards


class Scoring:
    """Takes images as they are made. Used as a context, which ends the threads.

    rewards: name -> reward; policies: for those that have one; applies: (name, metadata) -> whether a reward concerns
    a prompt; prompts, metadata: of all images to come; group_index: (B,) int64; elsewhere: groups with images that are
    not among them, for which rewards that need groups are not called; threads: else a call waits for its reward.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        policies: Mapping[str, Policy],
        applies: Callable[[str, Mapping[str, Any]], bool],
        prompts: Sequence[str],
        metadata: Sequence[dict[str, Any]],
        group_index: Tensor,
        *,
        elsewhere: frozenset[int] = frozenset(),
        save_failures_to: Path | None = None,
        threads: bool = True,
    ) -> None:
        self._rewards, self._policies, self._applies = rewards, policies, applies
        self._prompts, self._metadata, self._groups = prompts, metadata, group_index.tolist()
        self._last = {group: row for row, group in enumerate(self._groups) if group not in elsewhere}
        self._images: list[Tensor] = []  # (3, H, W), one for each row so far
        # one thread for a reward that has two names: it may not bear to be called twice at once
        names = {id(reward): name for name, reward in rewards.items()} if threads else {}
        self._threads = {
            key: ThreadPoolExecutor(1, f"reward {name}", on_a_stream_of_its_own(f"reward {name}"))
            for key, name in names.items()
        }
        self._jobs: list[tuple[str, list[int], Future[Answer]]] = []
        self._folder, self._stop = save_failures_to, Event()

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        for thread in self._threads.values():
            thread.shutdown(wait=kind is not KeyboardInterrupt, cancel_futures=True)

    def add(self, images: Tensor) -> None:
        """The images of the next rows, (n, 3, H, W) float in [0, 1]. Raises what a reward has raised meanwhile."""
        images = images.detach().float().cpu()
        seen = Seen(images)
        start = len(self._images)
        self._images += images
        new = range(start, len(self._images))
        for name, reward in self._rewards.items():
            rows = self._completed(new) if needs_group(reward) else new
            rows = [row for row in rows if self._applies(name, self._metadata[row])]
            if rows:
                if rows == [*new]:
                    self._call(name, reward, rows, images, seen)
                else:
                    self._call(name, reward, rows, torch.stack([self._images[row] for row in rows]))
        for _, _, job in self._jobs:
            if job.done():
                job.result()

    def result(self) -> Scored:
        """Once all images are there: their scores, when the rewards are done."""
        answers = [(name, rows, job.result()) for name, rows, job in self._jobs]
        nothing = torch.full((len(self._images),), torch.nan)
        answered = joined(len(nothing), ((rows, answer.scores) for _, rows, answer in answers))
        failures: Counter[str] = Counter()
        for name, _, given in answers:
            failures.update({f"retries/{name}": given.retries, f"dropped/{name}": given.dropped})
        return Scored(dict.fromkeys(self._rewards, nothing) | answered, failures, sum(a.seconds for _, _, a in answers))

    def _completed(self, new: range) -> list[int]:
        """Rows of the groups whose last image is among the new ones."""
        return [row for row, group in enumerate(self._groups) if self._last.get(group, -1) in new]

    def _call(self, name: str, reward: Reward, rows: list[int], images: Tensor, seen: Seen | None = None) -> None:
        group_index = None
        if needs_group(reward):
            group_index = torch.tensor([self._groups[row] for row in rows]).unique(return_inverse=True)[1]
        prompts, metadata = [self._prompts[row] for row in rows], [self._metadata[row] for row in rows]
        batch = Batch(images, prompts, metadata, group_index, seen)
        arguments = (name, reward, batch, self._policies.get(name, Policy()), self._folder, self._stop)
        if self._threads:
            job = self._threads[id(reward)].submit(answer, *arguments)
        else:
            job = Future()
            job.set_result(answer(*arguments))
        self._jobs.append((name, rows, job))
