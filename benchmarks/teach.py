"""Simulated people with a hidden taste teach tiny-sd3: how much more of it does the model draw after 60 answers?

    python benchmarks/teach.py                           three tastes, seeds 0 to 2
    python benchmarks/teach.py --tastes small --seeds 0 --note "without reuse" --set human.reuse=0

It needs what `make test-browser` installs. No reward knows the taste. The person sees the pictures only, as the page
shows them in a real browser, and marks those that are more to their taste than the others; what they mark is all that
the run learns from. After every update the averaged weights draw prompts that never train, from the same noise. Appends
a line to benchmarks/results/teach.jsonl: shares of pictures to the taste, crispness and drift by the number of answers,
and how many answers a rise by .25 took.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import urljoin

import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from torch import Tensor

from dgpo.config import Config
from dgpo.recipes import recipe
from dgpo.recipes.teaching import for_teaching
from dgpo.run import folder as runfolder
from dgpo.run.callbacks import Callback, Evaluated, Progress
from dgpo.teach.groups import TRAIN
from dgpo.teach.learned import Updates
from dgpo.teach.picks import Picks
from dgpo.training.loop import train
from dgpo.utils.pictures import from_pil
from dgpo.worlds.shapes.detector import Found, detect
from overrides import overridden

RESULTS = Path(__file__).parent / "results" / "teach.jsonl"
HELD_OUT = "shapes:unseen:two_object"
IMAGES = 8
"""Of each held-out prompt, after every update."""
RISE = 0.25

SHOWN = """() => document.getElementById("asking").hidden || document.getElementById("teach").ariaBusy === "true" ? []
  : [...document.querySelectorAll(".choice img")].map((image) => image.getAttribute("src"))"""
"""The addresses of the pictures that can be answered now."""

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
    return overridden(config, changes)


def teach(config: Config, taste: str, answers: int, wrong: float) -> dict[str, Any]:
    """Train until the person has given their answers and what they said is learned; returns what came of it."""
    person = Person(config, taste, answers, wrong)
    executor = ThreadPoolExecutor(1)
    answering: list[Future[None]] = []
    curve: list[dict[str, float]] = []

    class Watch(Callback):
        """Lets the person begin once there is a run, ends it when all is learned, and keeps the curve."""

        def on_start(self, run: Progress) -> None:
            answering.append(executor.submit(person.answer_all))

        def on_evaluation(self, run: Progress, evaluated: Evaluated) -> None:
            found = {name: evaluated.metrics[f"eval/held_out/{name}"] for name in ("taste", "crispness", "drift")}
            learned = Updates(run.folder).all()[-1].new if run.iteration else ()
            curve.append({"answers": person.answered_until(learned), **found})

        def on_progress(self, run: Progress, phase: str, done: int, total: int) -> None:
            if phase == "waiting for answers" and answering[0].done():
                run.stop()

    def to_taste(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [float(value >= TASTES[taste][1]) for value in judge(images, taste)]

    train(config, reward_functions={"taste": to_taste}, callbacks=[Watch()])
    answering[0].result()
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
    """Judges pictures by a taste that nobody else knows, on the real page in a real browser."""

    def __init__(self, config: Config, taste: str, answers: int, wrong: float) -> None:
        self._run, self._taste, self._answers, self._wrong = Path(config.out or ""), taste, answers, wrong
        self._chance = random.Random(f"{taste} {config.seed}")
        self.same = 0

    @property
    def given(self) -> list[int]:
        """Groups to learn from that were answered, in order. Comparisons and repeated groups are not counted."""
        return [question.group for question in Picks(self._run).all() if question.asked == TRAIN]

    def answered_until(self, groups: Sequence[int]) -> int:
        """How many answers had been given with the last of these groups."""
        given = self.given
        return max((given.index(number) + 1 for number in groups), default=0)

    def answer_all(self) -> None:
        """Open the page, say a name, and answer what is shown."""
        with studio(self._run) as link, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=which("chromium"))
            page = browser.new_page()
            page.goto(f"{link}teach/{self._run.name}")
            page.get_by_label("Your name").fill("simulated")
            page.keyboard.press("Enter")
            before: list[str] = []
            while len(self.given) < self._answers:
                shown = page.evaluate(SHOWN)
                if shown and shown != before:
                    self._answer(page, before := shown)
                else:
                    page.wait_for_timeout(20)
            browser.close()

    def _answer(self, page: Page, shown: Sequence[str]) -> None:
        """Mark and send what is shown, and wait until it is saved. shown: the addresses of the pictures"""
        judged = judge(torch.stack([seen(page, address) for address in shown]), self._taste)
        if self._chance.random() < self._wrong:
            self._chance.shuffle(judged)
        before = len(Picks(self._run).all())
        good, bad = marks(judged)
        for place in good:
            page.keyboard.press(str(place + 1))
        for place in bad if len(judged) > 2 else ():
            page.keyboard.press(f"Shift+Digit{place + 1}")
        page.keyboard.press("Enter" if good else "s")
        self.same += not good and len(judged) > 2
        while len(Picks(self._run).all()) == before:
            page.wait_for_timeout(10)


@contextmanager
def studio(run: Path) -> Iterator[str]:
    """A studio of the run, and where it is."""
    command = [sys.executable, "-m", "dgpo", "studio", str(run), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(word for line in process.stdout for word in line.split() if word.startswith("http"))
        finally:
            process.terminate()


def seen(page: Page, address: str) -> Tensor:
    """(3, H, W): the picture at an address of the page."""
    content = page.request.get(urljoin(page.url, address)).body()
    return from_pil(Image.open(io.BytesIO(content)).convert("RGB"))


def marks(judged: Sequence[float]) -> tuple[list[int], list[int]]:
    """Good are those in the best third of what is shown, bad those in the worst; none where all are as good."""
    best, worst = max(judged), min(judged)
    near = (best - worst) / 3
    if best == worst:
        return [], []
    good = [i for i, value in enumerate(judged) if value >= best - near]
    return good, [i for i, value in enumerate(judged) if value <= worst + near]


def judge(images: Tensor, taste: str) -> list[float]:
    """What a taste says of pictures (B, 3, 64, 64)."""
    return [TASTES[taste][0](picture.objects) for picture in detect(images)]


if __name__ == "__main__":
    main()
