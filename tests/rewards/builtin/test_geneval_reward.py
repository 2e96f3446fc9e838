"""The reward as a run calls it: by name and by hand, from tiny networks on disk and from detections made by hand."""

import pytest
import torch
from tiny_geneval import SIDES, save_clip, save_mask2former, save_yolos

from dgpo.data.prompts import load_prompts
from dgpo.errors import UserError
from dgpo.rewards.base import RewardError, call_reward, check_metadata
from dgpo.rewards.builtin.geneval import CLIP, DETECTOR, GenEval
from dgpo.rewards.builtin.geneval.rules import Detection
from dgpo.rewards.builtin.geneval.vocabulary import CLASSES
from dgpo.rewards.combine import RewardSet
from dgpo.rewards.registry import resolve

SOLID = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
CAR = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}


class Seen:
    """A detector that sees one car in the left half of a picture whose left half is not black; counts its calls."""

    labels = frozenset(CLASSES)

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        height, width = images.shape[-2:]
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[:, : width // 2] = True
        car = Detection("car", 0.9, (0, 0, width // 2, height), mask)
        return [[car] if image[:, :, : width // 2].any() else [] for image in images]


class Colors:
    """Tells a crop's colour by its first pixel."""

    def __init__(self):
        self.calls = []

    def __call__(self, crops, names):
        self.calls.append(list(names))
        return [{value: name for name, value in SOLID.items()}.get(one.getpixel((0, 0)), "white") for one in crops]


def picture(left, right="green"):
    """(3, 4, 8), one colour on each side; None is black."""
    sides = [torch.tensor(SOLID.get(name, (0, 0, 0)))[:, None, None].expand(3, 4, 4) / 255 for name in (left, right)]
    return torch.cat(sides, -1)


def test_scores_of_a_batch():
    reward = GenEval(Seen(), Colors(), batch_size=2)
    images = torch.stack([picture("red"), picture("blue", "red"), picture(None, "red")])
    scores = call_reward("geneval", reward, images, ["a photo of a red car"] * 3, [CAR] * 3)
    assert list(scores) == ["geneval", "geneval/strict", "geneval/accuracy"]
    assert scores["geneval"].tolist() == [1, 0.5, 0]
    assert scores["geneval/strict"].tolist() == [1, 0, 0]
    assert scores["geneval/accuracy"].tolist() == [1, 0, 0]
    assert reward._detector.batches == [2, 1]
    assert reward._colors.calls == [["car", "car"]]


def test_colours_are_asked_for_only_where_a_prompt_names_one():
    reward = GenEval(Seen(), Colors())
    rows = [{"tag": "single_object", "include": [{"class": name, "count": 1}]} for name in ("car", "cup")]
    assert reward(torch.stack([picture("red")] * 2), ["a", "b"], rows)["geneval"] == [1, 0]
    assert reward._colors.calls == []


def test_a_prompt_that_counts_needs_surer_objects():
    rows = [{"tag": tag, "include": [{"class": "car", "count": 1}]} for tag in ("single_object", "counting")]
    assert GenEval(Seen(), Colors())(torch.stack([picture("red")] * 2), ["a", "b"], rows)["geneval"] == [1, 0]


def test_it_is_built_in_and_loads_nothing_before_it_is_called():
    reward = resolve("geneval")
    assert isinstance(reward, GenEval)
    assert reward._given == (DETECTOR, CLIP)
    assert RewardSet({"geneval": 1.0}, watched=()).weights == {"geneval": 1.0}


def test_every_prompt_needs_tag_and_include():
    check_metadata(GenEval(), load_prompts("geneval:test").metadata)
    with pytest.raises(UserError, match="GenEval reads tag, include from every prompt's metadata; prompt 0 has no tag"):
        check_metadata(GenEval(), [{"include": []}])


def test_mistakes_are_told_before_a_network_runs():
    seen = Seen()
    with pytest.raises(UserError, match=r"class 'kar'\. Did you mean 'car'"):
        GenEval(seen, Colors())(picture("red")[None], ["x"], [{"tag": "x", "include": [{"class": "kar"}]}])
    assert seen.batches == []
    with pytest.raises(UserError, match="batch_size=0"):
        GenEval(batch_size=0)


def test_a_broken_picture_is_named_and_kept(tmp_path):
    images = torch.stack([picture("red"), picture("red")])
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(RewardError, match=r"not finite\. Image 1 of 2"):
        call_reward("geneval", GenEval(Seen(), Colors()), images, ["a", "b"], [CAR, CAR], tmp_path)
    assert (tmp_path / "geneval-00001.png").is_file()


@pytest.mark.parametrize("save", [save_mask2former, save_yolos])
def test_tiny_networks_from_disk_end_to_end(tmp_path, save):
    reward = GenEval(save(tmp_path / "detector"), save_clip(tmp_path / "clip"), device="cpu", sides=SIDES, batch_size=3)
    include = [{"class": "dining table", "count": 1, "color": "red"}, {"class": "motorcycle", "count": 1}]
    rows = [{"tag": "color_attr", "include": include}, {"tag": "two_object", "include": include[1:]}] * 2
    images = torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    scores = call_reward("geneval", reward, images, ["x"] * 4, rows)
    assert all(values.shape == (4,) for values in scores.values())
    assert scores["geneval"].max() <= 1
    again = call_reward("geneval", reward, images.flip(0), ["x"] * 4, rows[::-1])
    assert torch.equal(again["geneval"].flip(0), scores["geneval"])
    with pytest.raises(UserError, match="class 'cat'"):
        reward(images[:1], ["x"], [{"tag": "x", "include": [{"class": "cat"}]}])
