"""Who is asked what, and that two people, or two servers, never answer the same without being told."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from people import NEVER, add_group, desk_of

from dgpo.config import Human
from dgpo.errors import UserError
from dgpo.teach import desk as module
from dgpo.teach.desk import Answered
from dgpo.teach.groups import BLIND
from dgpo.teach.picks import Choice, Question

GOOD = Choice(good=(0,))


def ask(desk, who="ana"):
    asked = desk.next(who)
    return asked and (asked.group.number, asked.question.asked)


def answer_all(desk, who="ana", choice=GOOD, most=99):
    """What this person was asked, in order."""
    found = []
    while len(found) < most and (asked := desk.next(who)) is not None:
        desk.answer(asked.question, choice)
        found.append((asked.group.number, asked.question.asked))
    return found


def test_nothing_is_asked_before_a_group_is_drawn(tmp_path):
    desk = desk_of(tmp_path)
    assert ask(desk) is None
    add_group(tmp_path, 0)
    assert ask(desk) == (0, "train")


def test_whoever_loads_the_page_anew_gets_the_same_group(tmp_path):
    for number in range(3):
        add_group(tmp_path, number)
    desk = desk_of(tmp_path)
    assert [ask(desk), ask(desk), ask(desk, "ben"), ask(desk)] == [
        (0, "train"),
        (0, "train"),
        (1, "train"),
        (0, "train"),
    ]


def test_groups_and_answers_may_come_while_others_are_walked_through(tmp_path):
    """A walk looks for pictures, and a look finds what is new."""
    for number in range(2):
        add_group(tmp_path, number, size=2)
    desk, other = desk_of(tmp_path), desk_of(tmp_path)
    groups, picks = desk.lessons.groups, desk.lessons.picks
    desk.answer(desk.next("ana").question, GOOD)
    for number in groups.all():
        add_group(tmp_path, number + 2, size=2)
        assert groups.is_whole(number + 2)
    assert [*groups.all()] == [0, 1, 2, 3]
    for question in picks.all():
        asked = other.next("ben")
        other.answer(asked.question, GOOD)
        assert picks.of(asked.group.number)[0].question != question
    assert len(picks.all()) == 2


def test_a_group_that_is_left_lying_goes_to_another(tmp_path, monkeypatch):
    add_group(tmp_path, 0)
    desk = desk_of(tmp_path)
    assert ask(desk) == (0, "train")
    assert ask(desk, "ben") is None
    monkeypatch.setattr(module, "LEASE", -1.0)
    assert ask(desk, "ben") == (0, "train")


def test_the_second_answer_to_a_group_is_refused_and_names_the_first(tmp_path):
    add_group(tmp_path, 0)
    one, other = desk_of(tmp_path), desk_of(tmp_path)  # two servers
    mine, theirs = one.next("ana"), other.next("ben")
    one.answer(mine.question, GOOD)
    with pytest.raises(Answered, match="ana has answered this group already"):
        other.answer(theirs.question, Choice(bad=(0,)))
    with pytest.raises(Answered, match="you have answered"):
        one.answer(mine.question, Choice(bad=(0,)))
    one.answer(mine.question, GOOD)  # sent again, since the page did not hear that it was kept
    assert [pick.choice for pick in other.lessons.picks.all().values()] == [GOOD]
    assert ask(other, "ben") is None


def test_an_unknown_group_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no group 7"):
        desk_of(tmp_path).answer(Question(7, "train", "ana"), GOOD)


def test_undo_goes_back_any_number_and_asks_again(tmp_path):
    for number in range(3):
        add_group(tmp_path, number)
    desk = desk_of(tmp_path)
    assert answer_all(desk) == [(0, "train"), (1, "train"), (2, "train")]
    assert [desk.undo("ana").group.number for _ in range(3)] == [2, 1, 0]
    with pytest.raises(UserError, match="ana has no answer to take back"):
        desk.undo("ana")
    assert not desk.lessons.picks.all()
    assert answer_all(desk) == [(0, "train"), (1, "train"), (2, "train")]


def test_nobody_takes_back_another_persons_answer(tmp_path):
    add_group(tmp_path, 0)
    desk = desk_of(tmp_path)
    answer_all(desk)
    with pytest.raises(UserError, match="ben has no answer"):
        desk.undo("ben")


def test_comparisons_come_first(tmp_path):
    add_group(tmp_path, 0)
    add_group(tmp_path, 1, BLIND, 2)
    assert answer_all(desk_of(tmp_path)) == [(1, "blind"), (0, "train")]


def test_a_person_is_asked_again_after_so_many_answers_and_not_at_once(tmp_path):
    for number in range(14):
        add_group(tmp_path, number)
    found = answer_all(desk_of(tmp_path, replace(NEVER, repeat_every=6)))
    assert found[6] == (0, "again")
    assert found[13] == (1, "again")
    assert [number for number, asked in found if asked == "train"] == [*range(14)]


def test_another_person_is_asked_the_same_now_and_then(tmp_path):
    for number in range(8):
        add_group(tmp_path, number)
    desk = desk_of(tmp_path, replace(NEVER, share_every=2))
    assert answer_all(desk, most=3) == [(0, "train"), (1, "train"), (2, "train")]
    assert answer_all(desk, "ben", most=4) == [(3, "train"), (4, "train"), (2, "also"), (5, "train")]
    assert ask(desk, "ben") == (6, "train")  # due again, but one share has just been


def test_one_person_alone_shares_nothing(tmp_path):
    for number in range(9):
        add_group(tmp_path, number)
    assert {asked for _, asked in answer_all(desk_of(tmp_path, Human(repeat_every=0)))} == {"train"}


def test_a_group_whose_pictures_are_gone_is_not_asked(tmp_path):
    for number in range(2):
        add_group(tmp_path, number)
    desk = desk_of(tmp_path)
    assert ask(desk) == (0, "train")
    (tmp_path / "teach" / "000000" / "2.png").unlink()
    assert ask(desk) == (1, "train")
    shutil.rmtree(tmp_path / "teach" / "000001")
    assert ask(desk) is None


def test_seconds_are_those_since_the_group_was_shown(tmp_path, monkeypatch):
    add_group(tmp_path, 0)
    desk = desk_of(tmp_path)
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    asked = desk.next("ana")
    now[0] = 103.5
    desk.next("ana")
    now[0] = 104.25
    desk.answer(asked.question, GOOD)
    (pick,) = desk.lessons.picks.all().values()
    assert pick.seconds == 4.25
