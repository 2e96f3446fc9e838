"""GenEval's prompts: the published list, splits that share no scene, and the grammar of the templates."""

import hashlib
import json
import math

import pytest

from dgpo.data.prompts import load_prompts
from dgpo.errors import UserError
from dgpo.rewards.builtin.geneval import benchmark as published
from dgpo.rewards.builtin.geneval import templates
from dgpo.rewards.builtin.geneval.benchmark import benchmark
from dgpo.rewards.builtin.geneval.prompts import SHARES, SPLITS, TEST_SIZE, load, scene
from dgpo.rewards.builtin.geneval.request import read
from dgpo.rewards.builtin.geneval.vocabulary import CLASSES, KINDS, UNSEEN_CLASSES, article, class_name, plural

LISTS = {split: load(split) for split in SPLITS}


def classes(rows):
    return {entry["class"] for row in rows for entry in row["include"]}


def count(rows):
    return {kind: sum(row["tag"] == kind for row in rows) for kind in KINDS if any(row["tag"] == kind for row in rows)}


def test_the_benchmark_is_the_published_list():
    rows = benchmark()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    # of evaluation_metadata.jsonl, published with GenEval
    digest = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    assert hashlib.sha256(lines.encode()).hexdigest() == digest
    numbers = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert count(rows) == numbers
    assert rows[80]["prompt"] == "a photo of a bench and a sports ball"
    assert rows[-1]["tag"] == "color_attr"


def test_a_numpy_that_draws_otherwise_is_noticed(monkeypatch):
    monkeypatch.setattr(published, "_PUBLISHED", "0")
    published._text.cache_clear()
    with pytest.raises(UserError, match=r"does not draw GenEval's published prompts\. Give its evaluation_metadata"):
        load("benchmark")


def test_no_scene_of_another_split_is_trained_on():
    trained = {scene(row) for row in LISTS["train"]} | {scene(row) for row in load("train", KINDS[1:])}
    for split in ("test", "unseen", "benchmark"):
        assert not trained & {scene(row) for row in LISTS[split]}


def test_unseen_objects_never_occur_in_training():
    assert classes(LISTS["train"]) == set(CLASSES) - set(UNSEEN_CLASSES)
    assert classes(LISTS["unseen"]) == set(UNSEEN_CLASSES)
    assert not classes(LISTS["test"]) & set(UNSEEN_CLASSES)
    assert (len(CLASSES), len(UNSEEN_CLASSES)) == (80, 20)
    assert set(UNSEEN_CLASSES) < set(CLASSES)


def test_training_is_mixed_as_in_flow_grpo():
    numbers = count(LISTS["train"])
    assert numbers == {kind: 200 * share for kind, share in SHARES.items()}
    assert count(LISTS["train"][:17]) == SHARES  # every round
    assert len({scene(row) for row in LISTS["train"] if row["tag"] == "position"}) == numbers["position"]
    assert set(count(load("train", ["counting", "colors"])).values()) == {1700}


def test_test_lists_repeat_nothing():
    for split in ("test", "unseen"):
        assert len({scene(row) for row in LISTS[split]}) == len(LISTS[split])
        numbers = count(LISTS[split])
        assert set(numbers) == set(KINDS)
        assert all(numbers[kind] == TEST_SIZE for kind in ("two_object", "colors", "position", "color_attr"))
    assert [row["tag"] for row in LISTS["test"][:6]] == list(KINDS)


@pytest.mark.parametrize("split", SPLITS)
def test_lists_are_fixed_and_the_reward_reads_them(split):
    assert load(split) == LISTS[split]
    assert [read(row, CLASSES).tag for row in LISTS[split]] == [row["tag"] for row in LISTS[split]]
    assert not any(row["include"][0]["class"] == "person" for row in LISTS[split] if row["tag"].startswith("color"))


def test_lists_are_the_same_on_every_machine():
    prompts = "\n".join(row["prompt"] for split in SPLITS for row in LISTS[split])
    assert (
        hashlib.sha256(prompts.encode()).hexdigest()
        == "8414d139b12f530a21d60bbb1bebdd0e4d1b54fe7f03b989c61b71846fce798d"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_another_prompt(kind):
    few = ("person", "orange", "skis", "bench")
    rows = [templates.prompt(kind, few, i) for i in range(templates.number(kind, few))]
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert {row["tag"] for row in rows} == {kind}
    expected = {"single_object": 4, "two_object": 12, "counting": 12, "colors": 30, "position": 48, "color_attr": 540}
    assert len(rows) == expected[kind]


def test_templates_write_what_genevals_do():
    table = {"class": "dining table", "count": 1}
    assert templates.single_object("umbrella") == {
        "tag": "single_object",
        "include": [{"class": "umbrella", "count": 1}],
        "prompt": "a photo of an umbrella",
    }
    assert templates.counting("skis", 3) == {
        "tag": "counting",
        "include": [{"class": "skis", "count": 3}],
        "exclude": [{"class": "skis", "count": 4}],
        "prompt": "a photo of three skises",
    }
    placed = templates.position("apple", "left of", "dining table")
    assert placed["prompt"] == "a photo of an apple left of a dining table"
    assert placed["include"] == [table, {"class": "apple", "count": 1, "position": ["left of", 0]}]
    both = templates.color_attr("cup", "orange", "tie", "blue")
    assert both["prompt"] == "a photo of an orange cup and a blue tie"
    assert [entry["color"] for entry in both["include"]] == ["orange", "blue"]
    assert templates.colors("orange", "orange")["prompt"] == "a photo of an orange orange"
    assert (article("oven"), article("zebra"), plural("knife"), plural("bus")) == (
        "an oven",
        "a zebra",
        "knifes",
        "buses",
    )


def test_the_same_scene_in_another_order_is_one():
    assert scene(templates.two_object("cat", "dog")) == scene(templates.two_object("dog", "cat"))
    assert scene(templates.position("cat", "left of", "dog")) == scene(templates.position("dog", "right of", "cat"))
    assert scene(templates.position("cat", "above", "dog")) != scene(templates.position("dog", "above", "cat"))
    red_cup = templates.color_attr("cup", "red", "tie", "blue")
    assert scene(red_cup) == scene(templates.color_attr("tie", "blue", "cup", "red"))
    assert scene(red_cup) != scene(templates.color_attr("cup", "blue", "tie", "red"))
    assert scene(templates.two_object("cat", "dog")) != scene(templates.position("cat", "above", "dog"))


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("mouse", "computer mouse"),
        ("Remote", "tv remote"),
        ("diningtable", "dining table"),
        ("dining_table", "dining table"),
        ("aeroplane", "airplane"),
        ("tvmonitor", "tv"),
        ("cell phone", "cell phone"),
        ("giraffe", "giraffe"),
        ("N/A", "N/A"),
        ("window", "window"),
    ],
)
def test_labels_of_published_detectors(label, name):
    assert class_name(label) == name


def test_sources_and_their_mistakes():
    assert len(load_prompts("geneval:benchmark")) == 553
    assert {row["tag"] for row in load_prompts("geneval:unseen:counting, colors").metadata} == {"counting", "colors"}
    for source, message in {
        "geneval:trian": "unknown split 'trian' of GenEval's prompts. Did you mean 'train'",
        "geneval:test:color": "unknown kind of prompt 'color'. Did you mean 'colors'",
        "geneval:train:single_object": "no prompt of the kind single_object",
        "geneval:train:counting:x": "the form is geneval:SPLIT",
    }.items():
        with pytest.raises(UserError, match=message):
            load_prompts(source)


def test_templates_have_enough_scenes():
    assert templates.number("color_attr", CLASSES) == 79 * 78 * 90
    assert templates.number("position", CLASSES) == math.perm(80, 2) * 4
