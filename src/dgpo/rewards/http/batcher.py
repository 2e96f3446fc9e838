"""Many small requests, few calls of a reward: what waits is scored together.

One call runs at a time, in a thread of its own, since few rewards can do more; meanwhile requests gather, and the next
call takes as many as fit. Where a call with several requests fails, each is scored alone, so that one bad picture fails
nobody else's request; unless the reward asks another server that is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import anyio
import torch
from torch import Tensor

from dgpo.rewards.base import RewardAway
from dgpo.utils.devices import on_this_device

T = TypeVar("T")
Score = Callable[[Tensor, list[str], list[dict[str, Any]]], Mapping[str, Tensor]]


class Full(Exception):
    """Too many images wait already."""


class Room:
    """Memory for all requests together, of `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size, self._held = size, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that takes so many bytes more, or raises Full; all are given back at the end."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._held + count > self._size:
                raise Full(f"the requests at hand hold {self._held:,} bytes of {self._size:,} already")
            self._held += count
            mine += count

        try:
            yield take
        finally:
            self._held -= mine


class Batcher:
    """score: (images (n, 3, H, W), prompts, metadata) -> {name: (n,)}.

    max_images, max_pixels: of one call, unless one request has more; max_waiting: images that wait or are being
    scored, from which on `Full` is raised; wait: seconds for which a first request waits for others
    """

    def __init__(self, score: Score, max_images: int, max_pixels: int, max_waiting: int, wait: float) -> None:
        self._score, self._max_images, self._max_pixels = score, max_images, max_pixels
        self._max_waiting, self._wait = max_waiting, wait
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._next: _Job | None = None  # taken from the queue, and too large for the call before it
        self._thread = ThreadPoolExecutor(1, initializer=on_this_device())
        self.waiting = 0  # images, those that are being scored included

    def require_room(self) -> None:
        """Raises Full if no more images may wait."""
        if self.waiting >= self._max_waiting:
            raise Full(f"{self.waiting} images wait already")

    async def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The scores of one request, as soon as `run` has got to it."""
        self.require_room()
        job = _Job(images, prompts, metadata, asyncio.get_running_loop().create_future())
        self.waiting += len(prompts)
        self._queue.put_nowait(job)
        try:
            return await job.scores
        finally:
            self.waiting -= len(prompts)

    async def run(self) -> None:
        """Score what comes until this is cancelled."""
        with self._thread:
            while True:
                jobs = await self._gather()
                for size in dict.fromkeys(job.images.shape[1:] for job in jobs):
                    await self._call([job for job in jobs if job.images.shape[1:] == size])

    async def between(self, work: Callable[..., T], *arguments: Any) -> T:
        """What something else returns that may not run beside a call: what scores is not asked by two at once."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _gather(self) -> list[_Job]:
        jobs = [self._next or await self._queue.get()]
        self._next, total, pixels = None, len(jobs[0].prompts), jobs[0].pixels
        with anyio.move_on_after(self._wait):
            while total < self._max_images and self._next is None:
                job = self._queue.get_nowait() if self._queue.qsize() else await self._queue.get()
                total, pixels = total + len(job.prompts), pixels + job.pixels
                if total > self._max_images or pixels > self._max_pixels:
                    self._next = job
                else:
                    jobs.append(job)
        return jobs

    async def _call(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if not job.scores.done()]  # nobody waits for it any more
        if not jobs:
            return
        try:
            batch = (
                torch.cat([job.images for job in jobs]) if len(jobs) > 1 else jobs[0].images,
                [prompt for job in jobs for prompt in job.prompts],
                [row for job in jobs for row in job.metadata],
            )
            scores = await self.between(self._score, *batch)
        except Exception as error:
            if len(jobs) > 1 and not isinstance(error, RewardAway):
                for job in jobs:
                    await self._call([job])
                return
            for job in jobs:
                if not job.scores.done():
                    job.scores.set_exception(error)
            return
        parts = {name: values.split([len(job.prompts) for job in jobs]) for name, values in scores.items()}
        for i, job in enumerate(jobs):
            if not job.scores.done():
                job.scores.set_result({name: values[i] for name, values in parts.items()})


class _Job(NamedTuple):
    images: Tensor
    prompts: list[str]
    metadata: list[dict[str, Any]]
    scores: asyncio.Future[dict[str, Tensor]]

    @property
    def pixels(self) -> int:
        return self.images.numel() // 3
