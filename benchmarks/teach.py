"""Simulated people with a hidden taste teach tiny-sd3: how much more of it does the model draw after 60 answers?

    python benchmarks/teach.py                           three tastes, seeds 0 to 2
    python benchmarks/teach.py --tastes small --seeds 0 --note "without reuse" --set human.reuse=0

No reward knows the taste. The person sees the pictures only, as the page shows them, and marks those that are more to
their taste than the others; what they mark is all that the run learns from. After every update the averaged weights
draw prompts that never train, from the same noise. Appends a line to benchmarks/results/teach.jsonl: shares of pictures
to the taste, crispness and drift by the number of answers, and how many answers a rise by .25 took.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dgpo.config import Config, from_dict, to_dict
from dgpo.recipes import recipe
from dgpo.recipes.teaching import for_teaching
from dgpo.run import folder as runfolder
from dgpo.run.callbacks import Callback, Evaluated, Progress
from dgpo.teach.desk import Asked, Desk
from dgpo.teach.groups import BLIND, TRAIN
from dgpo.teach.learned import Lessons, Updates
from dgpo.teach.picks import Choice
from dgpo.training.loop import train
from dgpo.utils.pictures import read_image
from dgpo.worlds.shapes.detector import Found, detect

RESULTS = Path(__file__).parent / "results" / "teach.jsonl"
HELD_OUT = "shapes:unseen:two_object"
IMAGES = 8
"""Of each held-out prompt, after every update."""
RISE = 0.25

Taste = Callable[[Sequence[Found]], float]


def yellow(objects: Sequence[Found]) -> float:
    """The share of the objects that is yellow."""
    return sum(found.color == "yellow" for found in objects) / max(1, len(objects))


def small(objects: Sequence[Found]) -> float:
    """The smaller the largest object, the better."""
    return -max((found.radius for found in objects), default=99.0)


def left(objects: Sequence[Found]) -> float:
    """The further to the left the rightmost object, the better."""
    return -max((found.center[0] for found in objects), default=99.0)


TASTES: dict[str, tuple[Taste, float]] = {"yellow": (yellow, 0.01), "small": (small, -11.4), "left": (left, -36.0)}
"""name -> what pictures are judged by, and from where on a picture is to the taste."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tastes", nargs="+", default=[*TASTES], choices=[*TASTES])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--answers", type=int, default=60)
    options.add_argument("--wrong", type=float, default=0.0, help="share of answers that are given by chance")
    options.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the config")
    options.add_argument("--note", default="")
    given = options.parse_args()
    for seed in given.seeds:
        for taste in given.tastes:
            with tempfile.TemporaryDirectory() as folder:
                config = run_config(Path(folder) / "run", seed, given.set)
                began = time.perf_counter()
                found = teach(config, taste, given.answers, given.wrong)
            row = {"taste": taste, "seed": seed, "wrong": given.wrong, "set": given.set, "note": given.note, **found}
            row |= {"seconds": round(time.perf_counter() - began), "environment": runfolder.conditions()}
            with open(RESULTS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print({name: value for name, value in row.items() if name not in ("environment", "curve")}, flush=True)


def run_config(out: Path, seed: int, changes: Sequence[str]) -> Config:
    """The settings of `dgpo teach tiny-sd3`."""
    config = replace(
        for_teaching(recipe("tiny")),
        out=str(out),
        seed=seed,
        report=False,
        eval_prompts={"held_out": HELD_OUT},
        eval_images_per_prompt=IMAGES,
        eval_rewards=("taste", "crispness"),
    )
    values = to_dict(config)
    for pair in changes:
        field, _, value = pair.partition("=")
        *heading, own = field.split(".")
        (values[heading[0]] if heading else values)[own] = yaml.safe_load(value)
    return from_dict(values)


def teach(config: Config, taste: str, answers: int, wrong: float) -> dict[str, Any]:
    """Train until the person has given their answers and what they said is learned; returns what came of it."""
    person = Person(config, taste, answers, wrong)
    thread = threading.Thread(target=person.answer_all, daemon=True)
    curve: list[dict[str, float]] = []

    class Watch(Callback):
        """Lets the person begin once there is a run, ends it when all is learned, and keeps the curve."""

        def on_start(self, run: Progress) -> None:
            thread.start()

        def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
            found = {name: evaluated.metrics[f"eval/held_out/{name}"] for name in ("taste", "crispness", "drift")}
            learned = Updates(run.folder).all()[-1].new if run.iteration else ()
            curve.append({"answers": person.answered_until(learned), **found})

        def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
            if phase == "waiting for answers" and person.done:
                run.stop()

    def to_taste(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [float(value >= TASTES[taste][1]) for value in judge(images, taste)]

    train(config, reward_functions={"taste": to_taste}, callbacks=[Watch()])
    thread.join()
    needed = next((row["answers"] for row in curve if row["taste"] >= curve[0]["taste"] + RISE), None)
    return {
        "answers": len(person.given),
        "same": person.same,
        "share": [curve[0]["taste"], curve[-1]["taste"]],
        "crispness": [curve[0]["crispness"], curve[-1]["crispness"]],
        "needed": needed,
        "curve": curve,
    }


class Person:
    """Judges pictures by a taste that nobody else knows."""

    def __init__(self, config: Config, taste: str, answers: int, wrong: float) -> None:
        self._run, self._taste, self._answers, self._wrong = Path(config.out or ""), *(taste, answers, wrong)
        self._config, self._chance = config, random.Random(f"{taste} {config.seed}")
        self.given: list[int] = []  # groups to learn from, in order
        self.same, self.done = 0, False

    def answered_until(self, groups: Sequence[int]) -> int:
        """How many answers had been given with the last of these groups."""
        return max((self.given.index(number) + 1 for number in groups), default=0)

    def answer_all(self) -> None:
        """Comparisons and repeated groups are answered as well, and not counted."""
        desk = Desk(Lessons(self._run, self._config.rewards), self._config.human)
        while len(self.given) < self._answers:
            asked = desk.next("simulated")
            if asked is None:
                time.sleep(0.02)
                continue
            choice = self._choice(desk, asked)
            if asked.question.asked == TRAIN:
                self.given.append(asked.group.number)
                self.same += choice.same
            desk.answer(asked.question, choice)
        self.done = True

    def _choice(self, desk: Desk, asked: Asked) -> Choice:
        """Good are those clearly better than the middle, bad those clearly worse; all the same where none is."""
        files = [desk.lessons.groups.picture(asked.group.number, i) for i in range(asked.group.size)]
        images = torch.stack([read_image(path, ("PNG",), "cannot read") for path in files if path])
        judged = judge(images, self._taste)
        if self._chance.random() < self._wrong:
            self._chance.shuffle(judged)
        if asked.group.kind == BLIND:
            return Choice(good=(judged.index(max(judged)),)) if judged[0] != judged[1] else Choice(same=True)
        best, worst = max(judged), min(judged)
        if best == worst:
            return Choice(same=True)
        near = (best - worst) / 3
        good = tuple(i for i, value in enumerate(judged) if value >= best - near)
        return Choice(good, tuple(i for i, value in enumerate(judged) if value <= worst + near))


def judge(images: Tensor, taste: str) -> list[float]:
    """What a taste says of pictures (B, 3, 64, 64)."""
    return [TASTES[taste][0](picture.objects) for picture in detect(images)]


if __name__ == "__main__":
    main()
