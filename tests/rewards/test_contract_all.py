"""What every built-in reward is held to, by `dgpo reward-check`'s own measure. A new one is covered by itself.

Those that need published weights are made with tiny random ones, the judge with an endpoint of its own. A reward of the
registry that runs neither by its name nor from `MADE` fails here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny_geneval
import torch
from fake_http import Asked, Reply, answering
from safetensors.torch import save_file
from tiny_published import imagereward_values, save_clip
from torch import Tensor, nn
from transformers import BertTokenizer

from dgpo.core.seeds import generator
from dgpo.data.prompts import PromptSet, load_prompts
from dgpo.errors import UserError
from dgpo.rewards.base import Batch, RewardError, call_reward, check_metadata, needs_group
from dgpo.rewards.builtin.aesthetic import Aesthetic
from dgpo.rewards.builtin.clip import ClipScore
from dgpo.rewards.builtin.diversity import ClipDiversity
from dgpo.rewards.builtin.geneval import GenEval
from dgpo.rewards.builtin.hpsv2 import HPSv2
from dgpo.rewards.builtin.imagereward import ImageReward
from dgpo.rewards.builtin.ocr import OCR
from dgpo.rewards.builtin.pickscore import PickScore
from dgpo.rewards.builtin.vlm_judge import VLMJudge
from dgpo.rewards.check import check_reward
from dgpo.rewards.registry import BUILT_IN, OF_WORLDS, resolve
from dgpo.rewards.rows import check_rows
from dgpo.worlds.shapes import render as shapes_render
from dgpo.worlds.shapes import scenes
from dgpo.worlds.words import render as words_render
from dgpo.worlds.words.prompts import spell

GROUPS, SIZE = 2, 3
NETWORK_ROUNDING = 1e-3
"""Deviations of the scores: a network's sums are ordered by the batch. Rewards without one are held to a millionth."""


def saved_clip(folder: Path) -> str:
    return str(save_clip(folder / "clip"))


def aesthetic(folder: Path) -> Aesthetic:
    sizes = ((0, 24, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))
    layers = {number: nn.Linear(width, height) for number, width, height in sizes}
    tensors = {f"layers.{i}.{name}": value for i, layer in layers.items() for name, value in layer.state_dict().items()}
    save_file(tensors, folder / "mlp.safetensors")
    return Aesthetic(str(folder / "mlp.safetensors"), saved_clip(folder), device="cpu")


def imagereward(folder: Path) -> ImageReward:
    save_file(imagereward_values(), folder / "imagereward.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "triangle"]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder / "bert")
    return ImageReward(str(folder / "imagereward.safetensors"), str(folder / "bert"), device="cpu")


def geneval(folder: Path) -> GenEval:
    detector, clip = tiny_geneval.save_yolos(folder / "detector"), tiny_geneval.save_clip(folder / "clip")
    return GenEval(detector, clip, device="cpu", sides=tiny_geneval.SIDES)


def ocr(folder: Path) -> OCR:
    pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)
    return OCR(threads=1)


def judge(asked: Asked) -> Reply:
    """A score by the picture alone."""
    image = json.loads(asked.body)["messages"][0]["content"][0]["image_url"]["url"]
    return Reply(json.dumps({"choices": [{"message": {"content": f"Score: {len(image) % 11}"}}]}).encode())


MADE: dict[str, Callable[[Path], Any]] = {
    "clip_diversity": lambda folder: ClipDiversity(saved_clip(folder), device="cpu"),
    "geneval": geneval,
    "ocr": ocr,
    "pickscore": lambda folder: PickScore(saved_clip(folder), saved_clip(folder), device="cpu"),
    "clip": lambda folder: ClipScore(saved_clip(folder), device="cpu"),
    "aesthetic": aesthetic,
    "hpsv2": lambda folder: HPSv2(saved_clip(folder), saved_clip(folder), device="cpu"),
    "imagereward": imagereward,
}
WORDS = ("legibility", "words_diversity", "ocr")


def shapes_batch() -> Batch:
    """Two prompts; the second picture of each shows what the other asks for."""
    rows = load_prompts("shapes:seen").subset([0, 0, 0, 9, 9, 9])
    wanted = [rows.metadata[i] for i in (0, 3, 2, 3, 1, 5)]
    images = shapes_render.render(scenes.draw(scenes.requests(wanted), generator(0, "contract")))
    return Batch(images, rows.prompts, rows.metadata, torch.arange(6) // SIZE)


def words_batch() -> Batch:
    rows = load_prompts("words:train").subset([0, 0, 0, 1, 1, 1])
    letters = spell(rows.metadata[i]["text"] for i in (0, 3, 2, 3, 1, 5))
    images = words_render.render(words_render.draw(letters, generator(0, "contract")))
    return Batch(images, rows.prompts, rows.metadata, torch.arange(6) // SIZE)


def objects_batch() -> Batch:
    """Of classes that the tiny detector knows."""
    include = [{"class": "dining table", "count": 1, "color": "red"}, {"class": "motorcycle", "count": 1}]
    rows = [{"tag": "color_attr", "include": include}, {"tag": "two_object", "include": include[1:]}]
    images = torch.rand(6, 3, 48, 48, generator=generator(0, "contract"))
    return Batch(
        images, ["a"] * SIZE + ["b"] * SIZE, [dict(rows[i // SIZE]) for i in range(6)], torch.arange(6) // SIZE
    )


def batch_for(name: str) -> Batch:
    """Six pictures of two prompts with the metadata that the reward reads."""
    return words_batch() if name in WORDS else objects_batch() if name == "geneval" else shapes_batch()


@pytest.fixture(scope="module", params=BUILT_IN)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any, Batch]]:
    name = request.param
    with ExitStack() as stack:
        if name == "vlm_judge":
            reward: Any = VLMJudge(f"{stack.enter_context(answering(judge))}/v1", "any")
        else:
            reward = MADE[name](tmp_path_factory.mktemp(name)) if name in MADE else resolve(name)
        yield name, reward, batch_for(name)


def scored(name: str, reward: Any, batch: Batch) -> dict[str, Tensor]:
    return call_reward(name, reward, *batch[:3], group_index=batch.group_index if needs_group(reward) else None)


def test_it_keeps_the_contract(case: tuple[str, Any, Batch]) -> None:
    """Finite scores of the right shape, the same again, in another order and alone, for odd pictures too, and no input
    is changed."""
    name, reward, batch = case
    shown = batch if needs_group(reward) else batch._replace(group_index=None)
    findings = check_reward(name, reward, shown, NETWORK_ROUNDING if name in MADE else 0.0)
    assert {"scores", "the same again", "another order", "input unchanged"} <= {found.check for found in findings}
    assert {"images alone", "groups alone"} & {found.check for found in findings}
    assert [found for found in findings if found.passed is False] == []


def test_the_first_score_has_the_rewards_name(case: tuple[str, Any, Batch]) -> None:
    name, reward, batch = case
    scores = scored(name, reward, batch)
    assert next(iter(scores)) == name
    assert all(key == name or key.startswith(f"{name}/") for key in scores)
    for values in scores.values():
        assert values.dtype == torch.float32
        assert values.shape == (GROUPS * SIZE,)
        assert values.isfinite().all()


def test_the_input_of_a_run_is_left_as_it_is(case: tuple[str, Any, Batch]) -> None:
    """Built-in rewards are given no copy."""
    name, reward, batch = case
    before = batch.copy()
    scored(name, reward, batch)
    assert torch.equal(batch.images, before.images)
    assert batch[1:3] == before[1:3]
    assert batch.group_index is not None
    assert before.group_index is not None
    assert torch.equal(batch.group_index, before.group_index)


def test_a_group_is_scored_by_its_index_and_not_its_neighbours(case: tuple[str, Any, Batch]) -> None:
    name, reward, batch = case
    if not needs_group(reward):
        return
    whole = scored(name, reward, batch)[name]
    assert whole.std() > 0, "the groups must differ here"
    order = [0, 3, 1, 4, 2, 5]
    mixed = scored(name, reward, batch.rows(order))[name]
    torch.testing.assert_close(mixed, whole[order], rtol=1e-5, atol=1e-6)


def test_its_prompts_pass_its_own_check_and_others_are_refused_before_a_run(case: tuple[str, Any, Batch]) -> None:
    name, reward, batch = case
    assert check_rows(name, reward, PromptSet(batch.prompts, batch.metadata)) == []
    needed = getattr(reward, "required_metadata", ())
    for key in needed:
        rows = [{other: value for other, value in row.items() if other != key} for row in batch.metadata]
        with pytest.raises(UserError, match=f"prompt 0 has no {key}"):
            check_metadata(reward, rows)
    if needed:
        assert callable(getattr(reward, "check_row", None)), "metadata is looked at before a run"


def test_pixels_that_are_not_numbers_never_become_a_score(case: tuple[str, Any, Batch]) -> None:
    """A world's rewards rely on the sampler, which stops a run at such a picture."""
    name, reward, batch = case
    if name in OF_WORLDS:
        return
    one = batch.images.clone()
    one[2, 0, 5, 5] = float("nan")
    place = 0 if needs_group(reward) else 2  # of a group, its first image
    with pytest.raises(RewardError, match=f"'{name}' .*(nan|not finite).*Image {place} of 6"):
        scored(name, reward, batch._replace(images=one))
    with pytest.raises(RewardError):
        scored(name, reward, batch._replace(images=torch.full_like(one, float("nan"))))
