"""What people picked as a dataset: for `dgpo train --offline`, and as pictures for other programs.

FOLDER/
    dataset.json, groups.jsonl, latents-*.safetensors   groups that `dgpo train --offline` reads
    pictures/000012-0.png ...                           their pictures
    pictures.jsonl                                      a line a picture: file, prompt, group, reward, good, bad, ...
    picks.jsonl                                         the answers as they were given
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dgpo.data import groups as dataset
from dgpo.errors import UserError
from dgpo.teach import picks
from dgpo.teach.groups import LATENT_SPACE, Group
from dgpo.teach.learned import Lessons
from dgpo.teach.picks import Pick
from dgpo.utils.files import json_object, read_text


def export(run: Path, config: Mapping[str, Any], folder: Path) -> int:
    """Write the answered groups of a run into a new folder, whole or not at all; returns how many there are.

    config: the run's own, whose weights sum what people and other rewards say
    """
    lessons = Lessons(run, config["rewards"])
    answered = [number for number in lessons.teaching() if lessons.groups.is_whole(number)]
    if not answered:
        raise UserError(
            f"no group of {run} has an answer that prefers one picture to another: there is nothing to write"
        )
    answers = lessons.answered()
    scores = {number: lessons.scores(number, answers[number]) or {} for number in answered}
    dataset.require_new(folder)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        space = json_object(read_text(run / LATENT_SPACE), str(run / LATENT_SPACE))
        shutil.rmtree(unfinished, ignore_errors=True)
        dataset.write_groups(unfinished, _groups(lessons, scores), space, {"run": run.name, "model": config["model"]})
        _write_pictures(lessons, answers, scores, unfinished)
        shutil.copyfile(lessons.picks.path, unfinished / picks.NAME)
        unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}. Choose another --out") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(answered)


def _groups(lessons: Lessons, scores: Mapping[int, dict[str, list[float]]]) -> Iterator[dataset.Group]:
    names = [name for name in next(iter(scores.values())) if all(name in own for own in scores.values())]
    for number, own in scores.items():
        group = lessons.groups.all()[number]
        yield dataset.Group(
            prompt=group.prompt,
            metadata=group.metadata,
            x0=lessons.groups.x0(number),
            rewards=torch.tensor(lessons.rewards(own)),
            scores={name: torch.tensor(own[name]) for name in names},
        )


def _write_pictures(
    lessons: Lessons, answers: Mapping[int, list[Pick]], scores: Mapping[int, dict[str, list[float]]], folder: Path
) -> None:
    (folder / "pictures").mkdir()
    with open(folder / "pictures.jsonl", "w", encoding="utf-8") as lines:
        for number, own in scores.items():
            group, rewards = lessons.groups.all()[number], lessons.rewards(own)
            for picture in range(group.size):
                name, source = f"pictures/{number:06d}-{picture}.png", lessons.groups.picture(number, picture)
                assert source is not None, "the group is whole"
                shutil.copyfile(source, folder / name)
                line = {"file": name, **_told(group, answers[number], picture), "reward": rewards[picture]}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _told(group: Group, given: Sequence[Pick], picture: int) -> dict[str, Any]:
    return {
        "prompt": group.prompt,
        "group": group.number,
        "iteration": group.iteration,
        "answers": len(given),
        "good": sum(picture in pick.choice.good for pick in given),
        "bad": sum(picture in pick.choice.bad for pick in given),
        "sha256": group.images[picture],
    }
