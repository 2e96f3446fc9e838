"""The shapes rewards on pictures: right ones earn all, hacks earn little, one detection serves all."""

import pytest
import torch

from dgpo.core.seeds import generator
from dgpo.data.prompts import PromptSet
from dgpo.errors import UserError
from dgpo.rewards.combine import RewardSet
from dgpo.worlds.shapes import detector
from dgpo.worlds.shapes.prompts import load
from dgpo.worlds.shapes.render import coverage, render
from dgpo.worlds.shapes.scenes import draw, requests
from dgpo.worlds.shapes.vocabulary import COLORS, SHAPES

PROMPTS = load("train")[:72] + load("unseen")[:30]
NAMES = [row["prompt"] for row in PROMPTS]
REWARDS = RewardSet({"shapes": 1.0}, watched=("shapes_strict", "crispness", "diversity"))


def score(images, rows=PROMPTS):
    return REWARDS(images, [row["prompt"] for row in rows], rows)[0]


def clean(rows=PROMPTS, key=0):
    return render(draw(requests(rows), generator(key, "test")))


def add(images, shape, color, x, y, radius):
    """The same pictures with one more object drawn on top."""
    cover = coverage(torch.tensor([SHAPES.index(shape)]), torch.tensor([[x, y]]), torch.tensor([radius]))
    return torch.lerp(images, torch.tensor(COLORS[color])[:, None, None] / 255, cover)


def test_right_pictures_earn_all():
    scores = score(clean())
    assert scores["shapes_strict"].tolist() == [1] * len(PROMPTS)
    assert scores["shapes"].tolist() == [1] * len(PROMPTS)
    assert scores["crispness"].min() > 0.95


def test_pictures_of_other_prompts_earn_no_strict_and_less_dense():
    kinds = ("single_object", "counting", "colors", "color_attr")  # where other words always mean another picture
    rows = [row for row in PROMPTS[:72] if row["tag"] in kinds]
    scores = score(clean(rows).roll(len(kinds), 0), rows)  # another prompt's of the same kind
    assert scores["shapes_strict"].sum() == 0
    assert scores["shapes"].max() < 1
    assert scores["shapes"].mean() < 0.4


def test_the_opposite_relation_earns_presence_only():
    rows = [row for row in PROMPTS if row["tag"] == "position"]
    wanted = requests(rows)
    opposite = wanted._replace(relation=wanted.relation ^ 1)
    scores = score(render(draw(opposite, generator(3, "test"))), rows)
    assert scores["shapes_strict"].sum() == 0
    assert scores["shapes"].min() >= 0.5
    assert scores["shapes"].max() < 0.7


def test_dense_is_one_exactly_where_strict_is():
    mixed = torch.where((torch.arange(len(PROMPTS)) % 3 == 0)[:, None, None, None], clean(), clean().roll(2, 0))
    scores = score(mixed)
    assert torch.equal(scores["shapes"] == 1, scores["shapes_strict"] == 1)
    assert 0 < scores["shapes_strict"].mean() < 1


@pytest.mark.parametrize("radius", [9.0, 4.0])  # one more object; one more blob that is nothing
def test_an_extra_object_costs(radius):
    rows = [row for row in PROMPTS if row["tag"] == "colors"]
    scenes = draw(requests(rows), generator(1, "test"))
    scenes = scenes._replace(center=scenes.center.clamp(max=30))
    scores = score(add(render(scenes), "circle", "black", 52.0, 52.0, radius), rows)
    assert scores["shapes_strict"].sum() == 0
    assert scores["shapes"].tolist() == pytest.approx([0.5] * len(rows))


@pytest.mark.slow
def test_hacks_earn_little():
    count = len(PROMPTS)
    noise = torch.rand(count, 3, 64, 64, generator=generator(2, "test"))
    blank = torch.full((count, 3, 64, 64), 0.98)
    crowd = blank
    for place, shape in enumerate(SHAPES):
        x, y = 11.0 + 21 * (place % 3), 20.0 + 24 * (place // 3)
        crowd = add(crowd, shape, list(COLORS)[place], x, y, 9.0)
    for images in (noise, blank, crowd):
        scores = score(images)
        assert scores["shapes_strict"].sum() == 0
        assert scores["diversity"].sum() == 0
    assert score(noise)["shapes"].max() == 0
    assert score(blank)["shapes"].max() == 0
    assert score(crowd)["shapes"].mean() < 0.3
    assert score(crowd)["shapes"].max() < 0.5


def test_partial_credit_rises_with_every_object_that_is_right():
    include = [{"class": "star", "count": 3, "color": "cyan"}]
    images, earned = torch.full((1, 3, 64, 64), 0.98), []
    for x, y in ((14.0, 16.0), (46.0, 18.0), (30.0, 48.0), (52.0, 50.0)):
        images = add(images, "star", "cyan", x, y, 9.0)
        earned += score(images, [{"prompt": "three cyan stars", "include": include}])["shapes"].tolist()
    assert earned == pytest.approx([1 / 3, 2 / 3, 1, 3 / 4])


def test_all_scores_share_one_detection(monkeypatch):
    seen, read = [], detector._detect_chunk
    monkeypatch.setattr(detector, "_detect_chunk", lambda images: seen.append(len(images)) or read(images))
    score(clean())
    assert sum(seen) == len(PROMPTS)


def test_diversity_of_a_prompt_is_given_to_each_of_its_images():
    rows = [PROMPTS[0]] * 6 + [PROMPTS[1]] * 6
    images = torch.cat([clean(rows[:6]), clean(rows[6:7]).repeat(6, 1, 1, 1)])
    found = score(images, rows)["diversity"]
    assert len(set(found[:6].tolist())) == 1
    assert found[0] > 0.5
    assert found[6:].max() < 0.01
    images[6:] = 0.98  # no right picture: takes the other prompt's value
    assert score(images, rows)["diversity"].tolist() == pytest.approx(found[:1].tolist() * 12)


def test_prompts_without_metadata_are_refused():
    with pytest.raises(UserError, match="shapes reads include"):
        REWARDS.check(PromptSet(["a circle"], [{}]))
