"""Credit by hand: what is there, its colour, its relation, and what extras cost."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo.errors import UserError
from dgpo.worlds.shapes.detector import Found
from dgpo.worlds.shapes.judge import credit, follows
from dgpo.worlds.shapes.prompts import load
from dgpo.worlds.shapes.vocabulary import COLORS, RELATIONS, SHAPES


def found(shape, color="red", x=32.0, y=32.0):
    return Found(shape, color if shape else None, (x, y), 10.0, 0.95)


def entry(shape, count=1, **attributes):
    return {"class": shape, "count": count, **attributes}


UNKNOWN = found(None)
CIRCLE, SQUARE = found("circle"), found("square", "blue", x=10.0)


@pytest.mark.parametrize(
    ("objects", "include", "expected"),
    [
        ([CIRCLE], [entry("circle")], 1),
        ([], [entry("circle")], 0),
        ([SQUARE], [entry("circle")], 0),
        ([CIRCLE, SQUARE], [entry("circle")], 1 / 2),
        ([CIRCLE, UNKNOWN], [entry("circle")], 1 / 2),
        ([CIRCLE, UNKNOWN, UNKNOWN, SQUARE], [entry("circle")], 1 / 4),
        ([CIRCLE, SQUARE], [entry("circle"), entry("square")], 1),
        ([CIRCLE], [entry("circle"), entry("square")], 1 / 2),
        ([CIRCLE] * 2, [entry("circle", 3)], 2 / 3),
        ([CIRCLE] * 3, [entry("circle", 3)], 1),
        ([CIRCLE] * 4, [entry("circle", 3)], 3 / 4),
        ([CIRCLE], [entry("circle", color="red")], 1),
        ([CIRCLE], [entry("circle", color="green")], 1 / 2),
        ([found("circle", "blue"), CIRCLE], [entry("circle", color="red")], 1 / 2),
        ([CIRCLE, SQUARE], [entry("circle", color="red"), entry("square", color="blue")], 1),
        ([CIRCLE, SQUARE], [entry("circle", color="blue"), entry("square", color="red")], 1 / 2),
        ([CIRCLE, found("circle", "blue")], [entry("circle", color="green"), entry("circle", color="red")], 3 / 4),
    ],
)
def test_credit_by_hand(objects, include, expected):
    assert credit(objects, include) == pytest.approx(expected)
    assert follows(objects, include) == (expected == 1)


def position(relation):
    return [entry("square"), entry("circle", position=[relation, 0])]


def test_relation_by_hand():
    assert credit([CIRCLE, SQUARE], position("right of")) == 1  # circle at x 32, square at 10
    assert credit([CIRCLE, SQUARE], position("left of")) == pytest.approx(1 / 2)  # opposite: only presence counts
    assert credit([CIRCLE, SQUARE], position("above")) == pytest.approx(3 / 4)  # at a right angle: half of the relation
    assert credit([CIRCLE], position("right of")) == pytest.approx(1 / 4)  # present, but no relation to nothing


def test_relation_credit_grows_with_the_angle_and_jumps_to_one_where_it_holds():
    angles = [math.pi * k / 24 for k in range(25)]  # from opposite to right
    turned = [found("circle", x=32 - 20 * math.cos(a), y=32 - 20 * math.sin(a)) for a in angles]
    credits = [credit([one, found("square")], position("right of")) for one in turned]
    assert credits == sorted(credits)
    assert credits[0] == pytest.approx(1 / 2)
    assert credits[-1] == 1
    assert all(c < 1 for c, a in zip(credits, angles) if a <= math.pi * 3 / 4)
    assert all(c == 1 for c, a in zip(credits, angles) if a > math.pi * 3 / 4 + 1e-6)


def genevals_verdict(objects, include):
    """GenEval's own evaluation, written apart from the judge, with exact counts for every class."""
    if any(o.shape is None for o in objects) or len(objects) != sum(e["count"] for e in include):
        return False
    groups = [[o for o in objects if o.shape == e["class"]] for e in include]
    for e, group in zip(include, groups):
        if len(group) != e["count"] or any("color" in e and o.color != e["color"] for o in group):
            return False
        if "position" in e:
            relation, target = e["position"]
            dx, dy = (a - b for a, b in zip(group[0].center, groups[target][0].center))
            horizontal = "left of" if dx < 0 else "right of"
            vertical = "above" if dy < 0 else "below"
            if abs(dx) == abs(dy) or relation != (horizontal if abs(dx) > abs(dy) else vertical):
                return False
    return True


places = st.integers(0, 6).map(lambda k: 8.0 + 8 * k)
things = st.builds(found, st.sampled_from([*SHAPES[:3], None]), st.sampled_from(list(COLORS)[:2]), places, places)
asked = st.sampled_from([row["include"] for row in load("train") + load("unseen")])


@given(st.lists(things, max_size=5), asked, st.data())
@settings(max_examples=300, deadline=None)
def test_credit_is_one_exactly_where_genevals_rules_hold(objects, include, data):
    if data.draw(st.booleans()):  # mostly right, so that both verdicts occur
        objects = [
            found(e["class"], e.get("color", "red"), data.draw(places), data.draw(places))
            for e in include
            for _ in range(e["count"])
        ]
    assert follows(objects, include) == genevals_verdict(objects, include)
    assert 0 <= credit(objects, include) <= 1


@given(st.lists(things, max_size=5), asked)
@settings(max_examples=100, deadline=None)
def test_an_unknown_blob_never_helps_and_costs_whatever_is_earned(objects, include):
    before, after = credit(objects, include), credit([*objects, UNKNOWN], include)
    assert after < before or before == after == 0


def test_order_does_not_matter():
    include = [entry("circle", color="red"), entry("circle", color="blue")]
    one, two = found("circle", "blue"), found("circle", "green")
    assert credit([one, two], include) == credit([two, one], include) == pytest.approx(3 / 4)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_relation_is_judged_from_the_described_object(relation):
    shift = {"left of": (-20, 3), "right of": (20, 3), "above": (3, -20), "below": (3, 20)}[relation]
    moved = found("circle", x=32.0 + shift[0], y=32.0 + shift[1])
    assert [credit([moved, found("square")], position(r)) == 1 for r in RELATIONS] == [r == relation for r in RELATIONS]


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ([entry("bench")], "the class 'bench'"),
        ([entry("circle", color="gren")], "Did you mean 'green'"),
        ([entry("circle"), entry("star", position=["near", 0])], "the position 'near'"),
    ],
)
def test_what_the_world_does_not_know_is_told(include, message):
    with pytest.raises(UserError, match=message):
        credit([], include)
