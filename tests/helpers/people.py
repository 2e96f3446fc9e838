"""Groups of pictures and people who answer, without a training or with one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.config import Config, Human
from dgpo.core import seeds
from dgpo.run.callbacks import Callback, Progress
from dgpo.teach.desk import Asked, Desk
from dgpo.teach.groups import BLIND, TRAIN, Group, Groups, sha256
from dgpo.teach.learned import Lessons
from dgpo.teach.picks import Choice
from dgpo.utils.pictures import read_image, to_png

NEVER = Human(blind_every=0, repeat_every=0, share_every=0)


def add_group(
    run: Path, number: int, kind: Any = TRAIN, size: int = 4, prompt: str = "a red cat", **fields: Any
) -> Group:
    """A group of random pictures, and random latents where it is to learn from."""
    rng = seeds.generator(number, "people")
    pictures = [to_png(torch.rand(3, 16, 16, generator=rng)) for _ in range(size)]
    now = {"now": 1} if kind == BLIND else {}
    group = Group(
        number=number, kind=kind, prompt=prompt, iteration=0, images=tuple(map(sha256, pictures)), **{**now, **fields}
    )
    Groups(run).add(group, pictures, None if kind == BLIND else torch.randn(size, 4, 8, 8, generator=rng))
    return group


def desk_of(run: Path, human: Human = NEVER, **weights: float) -> Desk:
    """A desk of its own, as another process would have."""
    return Desk(Lessons(run, weights or {"human": 1.0}), human)


def pictures_of(desk: Desk, asked: Asked) -> Tensor:
    """(G, 3, H, W) as people see them."""
    folder = desk.lessons.groups.folder / f"{asked.group.number:06d}"
    return torch.stack([read_image(folder / f"{i}.png", ("PNG",), "cannot read") for i in range(asked.group.size)])


def reddest(desk: Desk, asked: Asked) -> Choice:
    """Good is the picture with most red, bad the one with least."""
    red = pictures_of(desk, asked)[:, 0].mean((1, 2))
    return Choice(good=(int(red.argmax()),), bad=() if asked.group.kind == BLIND else (int(red.argmin()),))


class Answers(Callback):
    """A person in a thread, from the beginning of a run to its end. What fails there fails the run, which waits for it.

    A picture may vanish while they look at it: then they turn to the next group, as at the page.
    """

    def __init__(self, choose: Callable[[Desk, Asked], Choice] = reddest, most: int = 10**6, who: str = "ana") -> None:
        self._choose, self._most, self._who = choose, most, who
        self.asked: list[Asked] = []
        self._ended = threading.Event()
        self._failed: Exception | None = None

    def on_start(self, run: Progress) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._answer, args=(run.folder, run.config), daemon=True)
        self._thread.start()

    def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
        if self._failed is not None:
            raise self._failed

    def on_end(self, run: Progress) -> None:
        self._ended.set()
        self._thread.join()

    def _answer(self, run: Path, config: Config) -> None:
        desk = Desk(Lessons(run, config.rewards), config.human)
        try:
            while not self._ended.is_set() and len(self.asked) < self._most:
                self._answer_next(desk)
        except Exception as error:
            self._failed = error

    def _answer_next(self, desk: Desk) -> None:
        asked = desk.next(self._who)
        if asked is None:
            time.sleep(0.01)
            return
        try:
            choice = self._choose(desk, asked)
        except Exception:
            if desk.lessons.groups.is_whole(asked.group.number):
                raise
            return
        desk.answer(asked.question, choice)
        self.asked.append(asked)
