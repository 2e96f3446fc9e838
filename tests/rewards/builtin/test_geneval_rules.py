"""GenEval's rules on detections made by hand: every task, every relation and every edge, against upstream's numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo.errors import UserError
from dgpo.rewards.builtin.geneval.request import Entry, Request, read
from dgpo.rewards.builtin.geneval.rules import Detection, accuracy, dense, keep, overlap, relations, strict
from dgpo.rewards.builtin.geneval.vocabulary import CLASSES, RELATIONS


def see(label, left=0.0, top=0.0, width=10.0, height=10.0, score=0.95, color=None):
    return Detection(label, score, (left, top, left + width, top + height), None, color)


def judge(row, *found):
    """(dense, strict, accuracy)"""
    request = read(row, CLASSES)
    objects = keep(found, request.tag)
    return dense(objects, request), strict(objects, request), accuracy(objects, request)


def row(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def colored(label, color, count=1):
    return {"class": label, "count": count, "color": color}


SINGLE = row("single_object", {"class": "cat", "count": 1})
TWO = row("two_object", {"class": "cat", "count": 1}, {"class": "dog", "count": 1})
THREE = row("counting", {"class": "cat", "count": 3}, exclude=[{"class": "cat", "count": 4}])
RED = row("colors", colored("car", "red"))
REDS = row("colors", colored("car", "red", 2))
LEFT = row("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]})
BOTH = row("color_attr", colored("car", "red"), colored("cup", "blue"))
CAT, DOG = see("cat"), see("dog", 100)
RED_CAR, BLUE_CAR, BLUE_CUP = see("car", color="red"), see("car", color="blue"), see("cup", 50, color="blue")


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        (SINGLE, [], (0, 0, 0)),
        (SINGLE, [CAT], (1, 1, 1)),
        (SINGLE, [CAT, CAT], (0, 0, 1)),  # the benchmark forgives one too many, the dense score does not
        (SINGLE, [CAT] * 4, (-2, 0, 1)),
        (SINGLE, [CAT] * 30, (-14, 0, 1)),  # 16 are looked at
        (SINGLE, [CAT, DOG], (1, 1, 1)),  # classes that nobody asked for are free
        (SINGLE, [DOG], (0, 0, 0)),
        (TWO, [CAT], (1 / 2, 0, 0)),
        (TWO, [CAT, DOG], (1, 1, 1)),
        (TWO, [CAT, DOG, DOG], (1 / 2, 0, 1)),
        (TWO, [], (0, 0, 0)),
        (THREE, [CAT] * 2, (2 / 3, 0, 0)),
        (THREE, [CAT] * 3, (1, 1, 1)),
        (THREE, [CAT] * 4, (2 / 3, 0, 0)),
        (THREE, [CAT] * 7, (-1 / 3, 0, 0)),
        (THREE, [], (0, 0, 0)),
        (RED, [RED_CAR], (1, 1, 1)),
        (RED, [BLUE_CAR], (1 / 2, 0, 0)),
        (RED, [], (0, 0, 0)),
        (RED, [RED_CAR, BLUE_CAR], (0, 0, 1)),  # the red one was seen first, and equally well
        (RED, [BLUE_CAR, RED_CAR], (0, 0, 0)),
        (RED, [BLUE_CAR._replace(score=0.5), RED_CAR], (0, 0, 1)),
        (REDS, [RED_CAR, RED_CAR], (1, 1, 1)),
        (REDS, [RED_CAR, BLUE_CAR], (3 / 4, 0, 0)),
        (REDS, [RED_CAR], (1 / 4, 0, 0)),  # no credit for colour where the number is wrong
        (LEFT, [CAT, DOG], (1, 1, 1)),
        (LEFT, [see("cat", 200), DOG], (2 / 3, 0, 0)),  # 3/4 in Flow-GRPO's code: deviation (a)
        (LEFT, [CAT], (1 / 3, 0, 0)),
        (LEFT, [DOG], (1 / 3, 0, 0)),
        (LEFT, [CAT, DOG, see("dog", 200)], (1 / 3, 0, 1)),
        (LEFT, [CAT, CAT, DOG], (1 / 3, 0, 1)),
        (LEFT, [], (0, 0, 0)),
        (BOTH, [RED_CAR, BLUE_CUP], (1, 1, 1)),
        (BOTH, [BLUE_CAR, BLUE_CUP], (3 / 4, 0, 0)),
        (BOTH, [RED_CAR], (1 / 2, 0, 0)),
        (BOTH, [BLUE_CAR, see("cup", color="red")], (1 / 2, 0, 0)),  # colours swapped
        (BOTH, [RED_CAR, BLUE_CUP, BLUE_CUP], (1 / 2, 0, 1)),
        (BOTH, [], (0, 0, 0)),
    ],
)
def test_scores(asked, found, expected):
    assert judge(asked, *found) == pytest.approx(expected)


@pytest.mark.parametrize(("tag", "threshold"), [("single_object", 0.3), ("counting", 0.9)])
def test_confidence_must_be_above_the_threshold(tag, threshold):
    asked = row(tag, {"class": "cat", "count": 1})
    above = math.nextafter(threshold, 1)
    assert judge(asked, see("cat", score=threshold)) == (0, 0, 0)
    assert judge(asked, see("cat", score=above)) == (1, 1, 1)
    assert judge(asked, see("cat", score=above), see("cat", score=threshold)) == (1, 1, 1)


def test_the_most_confident_come_first_and_ties_keep_their_order():
    found = [see("cat", 1, score=0.5), see("cat", 2, score=0.9), see("cat", 3, score=0.5), see("dog", 4, score=0.4)]
    objects = keep(found, "two_object")
    assert [one.box[0] for one in objects["cat"]] == [2, 1, 3]
    assert list(objects) == ["cat", "dog"]


def test_overlapping_boxes_are_dropped_only_on_demand():
    found = [see("cat", score=0.9), see("cat", 1, score=0.8), see("cat", 50, score=0.7), see("dog", score=0.5)]
    assert {label: len(same) for label, same in keep(found, "x").items()} == {"cat": 3, "dog": 1}
    assert {label: len(same) for label, same in keep(found, "x", 0.5).items()} == {"cat": 2, "dog": 1}
    exactly = overlap(found[0].box, found[1].box)
    assert exactly == 110 / 132  # 11 x 11 pixels each, 10 x 11 shared
    assert len(keep(found[:2], "x", exactly)["cat"]) == 1
    assert overlap((0, 0, 9, 9), (20, 0, 29, 9)) == 0


BOX = (100.0, 100.0, 120.0, 140.0)  # 20 wide, 40 high


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (-50, 0, {"left of"}),
        (50, 0, {"right of"}),
        (0, -50, {"above"}),
        (0, 50, {"below"}),
        (-50, -50, {"left of", "above"}),
        (50, 50, {"right of", "below"}),
        (50, -50, {"right of", "above"}),
        (-50, 50, {"left of", "below"}),
        (0, 0, set()),
        (4, 0, set()),  # a tenth of 20 + 20
        (0, 8, set()),  # a tenth of 40 + 40
        (-4, -8, set()),
        (4.0009, 0, set()),  # beyond by less than a thousandth of a pixel
        (8, 0, set()),  # beyond by 4 of 8: half, not more
        (8.1, 0, {"right of"}),
        (0, -16, set()),
        (0, -16.1, {"above"}),
        (30, 60, {"below"}),  # (26, 52) of 67.1: 0.39 and 0.78
        (100, 57, {"right of"}),  # (96, 49) of 115.1: 0.83 and 0.43
        (100, 75, {"right of", "below"}),  # (96, 67) of 125: 0.77 and 0.54
    ],
)
def test_relations(x, y, expected):
    assert relations((BOX[0] + x, BOX[1] + y, BOX[2] + x, BOX[3] + y), BOX) == expected


def test_relations_of_boxes_inside_each_other_and_touching():
    assert relations((0, 0, 100, 100), (40, 40, 60, 60)) == set()
    assert relations((0, 0, 100, 100), (100, 0, 200, 100)) == {"left of"}
    assert relations((0, 0, 0, 0), (0, 0, 0, 0)) == set()


coordinate = st.floats(0, 500)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda box: (min(box[::2]), min(box[1::2]), max(box[::2]), max(box[1::2]))
)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@given(boxes, boxes)
def test_relations_turn_round_with_their_objects(one, other):
    there, back = relations(one, other), relations(other, one)
    assert back == {OPPOSITE[name] for name in there}
    assert len(there & {"left of", "right of"}) <= 1
    assert len(there & {"above", "below"}) <= 1


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_is_judged_from_the_entry_that_names_it(relation):
    x, y = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    asked = row("position", {"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": [relation, 0]})
    dog = see("dog", 200, 200)
    assert judge(asked, see("cat", 200 + 80 * x, 200 + 80 * y), dog) == (1, 1, 1)
    assert judge(asked, see("cat", 200 - 80 * x, 200 - 80 * y), dog) == (pytest.approx(2 / 3), 0, 0)
    assert judge(asked, see("cat", 200, 200), dog) == (pytest.approx(2 / 3), 0, 0)


def test_a_relation_needs_all_pairs_and_a_target_of_the_right_colour():
    cats = {"class": "cat", "count": 2, "position": ["left of", 0]}
    asked = row("position", {"class": "dog", "count": 1}, cats)
    assert judge(asked, CAT, see("cat", 20), DOG) == (1, 1, 1)
    assert judge(asked, CAT, see("cat", 200), DOG) == (pytest.approx(2 / 3), 0, 0)
    asked = row("position", colored("dog", "black"), {"class": "cat", "count": 1, "position": ["left of", 0]})
    assert judge(asked, CAT, DOG._replace(color="black")) == (1, 1, 1)
    assert judge(asked, CAT, DOG._replace(color="white")) == (1 / 2, 0, 0)


def test_exclude_of_another_class_counts_once_more():
    asked = row("single_object", {"class": "cat", "count": 1}, exclude=[{"class": "dog", "count": 2}])
    assert judge(asked, CAT, DOG) == (1, 1, 1)
    assert judge(asked, CAT, DOG, DOG) == (1 / 2, 0, 0)


def test_metadata_with_empty_columns_reads_as_without():
    table = {"class": "cat", "count": 2, "color": None, "position": None}
    assert read({"tag": "x", "include": [table], "exclude": None}, CLASSES) == Request("x", (Entry("cat", 2),))
    placed = {"class": "dog", "count": None, "color": "red", "position": ("above", "0")}
    entries = read({"tag": "x", "include": [table, placed]}, CLASSES).include
    assert entries[1] == Entry("dog", 1, "red", "above", 0)


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ([], "include names none"),
        ([{"class": "cat"}, {"class": "cat"}], "include names cat, cat"),
        (["cat"], "'cat' is no entry"),
        ([{"count": 1}], "is no entry"),
        ([{"class": "cats"}], "class 'cats'. Did you mean 'cat'"),
        ([{"class": "cat", "count": 0}], "from 1 to 16 .*got 0 of 'cat'"),
        ([{"class": "cat", "count": 17}], "got 17"),
        ([{"class": "cat", "count": 1.5}], "got 1.5"),
        ([{"class": "cat", "color": "rad"}], "color 'rad'. Did you mean 'red'"),
        ([{"class": "cat", "position": "above"}], "position 'above' must be"),
        ([{"class": "cat", "position": ["above"]}], "must be"),
        ([{"class": "cat"}, {"class": "dog", "position": ["over", 0]}], "relation 'over'"),
        ([{"class": "cat"}, {"class": "dog", "position": ["above", 1]}], "entry 1 of include is 'above' entry 1"),
        ([{"class": "cat"}, {"class": "dog", "position": ["above", -1]}], "entry -1"),
        ([{"class": "cat", "position": ["above", 0]}], "entry 0 of include"),
    ],
)
def test_metadata_that_cannot_be_judged_is_refused(include, message):
    with pytest.raises(UserError, match=message):
        read({"tag": "x", "include": include}, CLASSES)
