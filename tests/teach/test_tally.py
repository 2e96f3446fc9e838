"""What answers say of the model and of people, by hand and against a library."""

from __future__ import annotations

import pytest
from people import add_group
from scipy.stats import binomtest

from dgpo.teach.groups import BLIND, Groups
from dgpo.teach.picks import Choice, Pick, Question
from dgpo.teach.tally import agreement, alike, consistency, people, wilson, win_rate


def picks(*given: tuple[int, str, str, Choice], seconds: float = 1.0) -> dict[Question, Pick]:
    questions = [(Question(group, asked, who), choice) for group, asked, who, choice in given]
    return {question: Pick(question, choice, seconds, "") for question, choice in questions}


@pytest.mark.parametrize(("hits", "of"), [(0, 5), (5, 5), (8, 12), (30, 40)])
def test_the_interval_is_wilsons(hits, of):
    found, known = wilson(hits, of), binomtest(hits, of).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.share == hits / of


def test_nothing_is_known_without_answers():
    assert wilson(0, 0) == (None, 0.0, 1.0, 0)


def test_a_win_is_a_choice_of_the_trained_models_picture(tmp_path):
    for number, now in enumerate((0, 1, 1, 0)):
        add_group(tmp_path, number, BLIND, 2, now=now)
    given = picks(
        (0, "blind", "ana", Choice(good=(0,))),  # won
        (1, "blind", "ana", Choice(good=(0,))),  # lost
        (2, "blind", "ana", Choice(same=True)),  # half
        (3, "blind", "ana", Choice(skip=True)),  # says nothing
    )
    found = win_rate(Groups(tmp_path).all(), given.values())
    assert (found.share, found.of) == (0.5, 3)


def test_pairs_are_alike_where_both_order_them():
    one, other = (
        picks((0, "train", who, choice))[Question(0, "train", who)]
        for who, choice in (("ana", Choice(good=(0, 1), bad=(3,))), ("ben", Choice(ranks=(1, 3, 2, 2))))
    )
    # ana: 0 = 1 > 2 > 3; ben: 0 > 2 = 3 > 1. Both order 0:2, 0:3, 1:2, 1:3; alike are the first two
    assert alike(one, other, 4) == (2, 4)


def test_consistency_is_of_one_person_and_agreement_of_two(tmp_path):
    add_group(tmp_path, 0)
    add_group(tmp_path, 1)
    groups = Groups(tmp_path).all()
    given = picks(
        (0, "train", "ana", Choice(good=(0,), bad=(1,))),
        (0, "again", "ana", Choice(good=(0,), bad=(2,))),  # orders 0:1, 0:2, 0:3 alike, and 1:2 the other way round
        (0, "also", "ben", Choice(good=(1,), bad=(0,))),  # all five pairs with 0 or 1 the other way round
        (1, "train", "ben", Choice(same=True)),
    )
    found = consistency(groups, given)
    assert {who: (share.share, share.of) for who, share in found.items()} == {"ana": (0.75, 4)}
    together = agreement(groups, given)
    assert (together.share, together.of) == (0.0, 5)


def test_people_have_their_answers_and_median_seconds():
    given = picks((0, "train", "ana", Choice(same=True)), (1, "train", "ana", Choice(same=True)), seconds=3.0)
    assert people(given) == {"ana": {"answers": 2, "seconds": 3.0}}
