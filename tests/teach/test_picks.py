"""What people answered: what is an answer, what it is worth, and that none is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dgpo.errors import UserError
from dgpo.teach.picks import Choice, Picks, Question, choice_of, mean_rewards, require_name

ABOUT = {"prompt": "a red cat", "images": ["a", "b", "c", "d"]}
FIRST, SECOND = Question(0, "train", "ana"), Question(1, "train", "ana")


def keep(run: Path, question: Question, choice: Choice) -> None:
    with Picks(run).adding() as file:
        file.answer(question, choice, ABOUT, 1.234)


@pytest.mark.parametrize(
    ("given", "rewards"),
    [
        ({"good": [0, 3], "bad": [1]}, [1, -1, 0, 1]),
        ({"good": [2]}, [0, 0, 1, 0]),
        ({"bad": [2], "good": []}, [0, 0, -1, 0]),
        ({"ranks": [2, 1, 1, 3]}, [0, 1, 1, -1]),
        ({"ranks": [7, 7, 9, 9]}, [1, 1, -1, -1]),
        ({"ranks": [1, 1, 1, 1]}, [0, 0, 0, 0]),
        ({"same": True}, [0, 0, 0, 0]),
        ({"skip": True}, None),
    ],
)
def test_an_answer_has_its_worth(given, rewards):
    assert choice_of(given, 4).rewards(4) == rewards


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "has nothing"),
        ({"good": [], "bad": []}, "has nothing"),
        ({"good": [0], "same": True}, "good and bad as well as same"),
        ({"good": [0], "bad": [0]}, "picture 0 is good as well as bad"),
        ({"good": [4]}, "good names picture 4, and there are pictures 0 to 3"),
        ({"bad": [-1]}, "bad names picture -1"),
        ({"good": ["0"]}, "must be a list of pictures' numbers"),
        ({"good": [True]}, "must be a list of pictures' numbers"),
        ({"good": 1}, "must be a list of pictures' numbers"),
        ({"ranks": [1, 2]}, "a whole number for each of the 4 pictures"),
        ({"ranks": [0, 1, 1, 1]}, "a whole number for each"),
        ({"ranks": "1234"}, "a whole number for each"),
        ({"skip": "yes"}, "must be true or false"),
    ],
)
def test_what_is_no_answer_is_refused(given, told):
    with pytest.raises(UserError, match=told):
        choice_of(given, 4)


@pytest.mark.parametrize("who", ["", "  ", "a" * 41, "a\nb", 3, None])
def test_a_name_is_needed(who):
    with pytest.raises(UserError, match="must be a name of 1 to 40"):
        require_name(who)


def test_answers_stand_in_their_order_and_are_taken_back(tmp_path):
    keep(tmp_path, FIRST, Choice(good=(0,)))
    keep(tmp_path, SECOND, Choice(same=True))
    reader = Picks(tmp_path)
    assert [*reader.all()] == [FIRST, SECOND]
    with Picks(tmp_path).adding() as file:
        file.undo(FIRST)
    assert [*reader.all()] == [SECOND]
    keep(tmp_path, FIRST, Choice(bad=(1,)))
    assert [(q, pick.choice) for q, pick in reader.all().items()] == [
        (SECOND, Choice(same=True)),
        (FIRST, Choice(bad=(1,))),
    ]


def test_a_line_says_everything(tmp_path):
    keep(tmp_path, FIRST, Choice(good=(0, 3), bad=(1,)))
    told = json.loads((tmp_path / "picks.jsonl").read_text())
    assert told.pop("time").endswith("Z")
    assert told == {**FIRST._asdict(), **ABOUT, "good": [0, 3], "bad": [1], "seconds": 1.23}


def test_an_answer_is_on_the_disk_before_it_is_told(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    keep(tmp_path, FIRST, Choice(skip=True))
    assert (tmp_path / "picks.jsonl").stat().st_size in synced


def test_a_line_that_a_crash_cut_short_hides_no_other(tmp_path):
    keep(tmp_path, FIRST, Choice(good=(0,)))
    path = tmp_path / "picks.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    reader = Picks(tmp_path)
    assert [*reader.all()] == [FIRST]
    keep(tmp_path, SECOND, Choice(good=(1,)))
    assert [*reader.all()] == [FIRST, SECOND]
    assert reader.unreadable == 1
    assert [*Picks(tmp_path).all()] == [FIRST, SECOND]


@pytest.mark.parametrize(
    "line", ["{}", "[]", "null", '{"group": 0, "asked": "train", "who": "ana", "images": []}', "é"]
)
def test_a_line_of_something_else_is_passed_over(tmp_path, line):
    (tmp_path / "picks.jsonl").write_text(line + "\n\n", encoding="utf-8")
    keep(tmp_path, FIRST, Choice(good=(0,)))
    reader = Picks(tmp_path)
    assert [*reader.all()] == [FIRST]
    assert reader.unreadable == 1


def test_a_full_disk_is_told_and_nothing_is_acknowledged(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"could not be kept: .*No space left"), Picks(tmp_path).adding() as file:
        file.answer(FIRST, Choice(skip=True), ABOUT, 0.0)


def test_a_group_earns_the_mean_of_its_answers(tmp_path):
    for who, choice in (("ana", Choice(good=(0,))), ("ben", Choice(bad=(0,), good=(1,))), ("eve", Choice(skip=True))):
        keep(tmp_path, FIRST._replace(who=who), choice)
    reader = Picks(tmp_path)
    assert mean_rewards(reader.of(0), 4) == [0, 0.5, 0, 0]
    assert mean_rewards([pick for q, pick in reader.all().items() if q.who == "eve"], 4) is None
