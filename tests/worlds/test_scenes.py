"""Scenes keep to the frame, keep apart and hold what their prompt asks for."""

import pytest
import torch
from pictures import drawn

from dgpo.core.seeds import generator
from dgpo.worlds.common.ground import IMAGE_SIZE
from dgpo.worlds.shapes.detector import detect
from dgpo.worlds.shapes.judge import follows
from dgpo.worlds.shapes.metrics import scenes_of
from dgpo.worlds.shapes.prompts import all_prompts
from dgpo.worlds.shapes.render import render
from dgpo.worlds.shapes.scenes import BORDER, CLEARANCE, GAP, draw, relation_holds, requests
from dgpo.worlds.shapes.vocabulary import COLORS, KINDS, RELATIONS, SHAPES


def test_objects_lie_inside_the_frame_and_apart():
    _, scenes, _ = drawn(400)
    present = scenes.shape >= 0
    reach = scenes.radius[..., None] + BORDER - 1e-4
    inside = (scenes.center > reach) & (scenes.center < IMAGE_SIZE - reach)
    assert inside.all(-1)[present].all()
    distance = torch.cdist(scenes.center, scenes.center) - scenes.radius[:, :, None] - scenes.radius[:, None]
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(4, dtype=torch.bool)
    assert (distance[pairs] >= GAP - 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_drawn_for_a_prompt_follows_it_strictly(kind):
    prompts = all_prompts(kind)[:: max(len(all_prompts(kind)) // 60, 1)]
    scenes = draw(requests(prompts), generator(1, kind))
    pictures = detect(render(scenes))
    assert all(follows(seen.objects, prompt["include"]) for seen, prompt in zip(pictures, prompts))


def test_a_relation_is_kept_with_clearance_and_is_the_only_one():
    prompts = all_prompts("position")
    scenes = draw(requests(prompts), generator(2, "test"))
    offset = scenes.center[:, 0] - scenes.center[:, 1]
    asked = torch.tensor([RELATIONS.index(p["include"][1]["position"][0]) for p in prompts])
    assert relation_holds(offset, asked, CLEARANCE).all()
    held = torch.stack([relation_holds(offset, torch.full_like(asked, r)) for r in range(4)])
    assert (held.sum(0) == 1).all()


@pytest.mark.parametrize(
    ("offset", "relation"), [((-9, 3), "left of"), ((9, -3), "right of"), ((2, -9), "above"), ((2, 9), "below")]
)
def test_relations_by_hand(offset, relation):
    held = [relation_holds(torch.tensor(offset).float(), torch.tensor(r)).item() for r in range(4)]
    assert held == [r == relation for r in RELATIONS]


def test_requests_put_the_described_object_first():
    star, cross = {"class": "star", "count": 1}, {"class": "cross", "count": 1, "position": ["above", 0]}
    prompt = {"tag": "position", "include": [star, cross]}
    wanted = requests([prompt, all_prompts("counting")[0], all_prompts("colors")[9]])
    assert wanted.shape[0].tolist() == [SHAPES.index("cross"), SHAPES.index("star"), -1, -1]
    assert wanted.relation.tolist() == [RELATIONS.index("above"), -1, -1]
    assert (wanted.shape[1] >= 0).sum() == 2
    assert wanted.color[2, 0] == list(COLORS).index(all_prompts("colors")[9]["include"][0]["color"])


def test_scenes_depend_on_the_generator_alone():
    wanted = requests(all_prompts("counting"))
    one, same, other = (draw(wanted, generator(seed, "test")) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same))
    assert not torch.equal(one.center, other.center)


def test_free_colours_and_tints_are_all_drawn():
    _, scenes, _ = drawn(400)
    assert set(scenes.tint.tolist()) == set(range(4))
    assert set(scenes.color.flatten().tolist()) == set(range(len(COLORS)))


def test_reading_a_picture_gives_its_scene_back():
    _, _, images = drawn(40, key=5)
    again = render(scenes_of(detect(images)))
    assert (again - images).abs().mean() < 2e-3
