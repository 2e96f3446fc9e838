"""Groups and updates as a run folder keeps them: nothing that is damaged, deleted or cut short stops a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from people import add_group, desk_of

from dgpo.teach.groups import Groups
from dgpo.teach.learned import Lessons, Update, Updates
from dgpo.teach.picks import Choice, Question


def lessons_of(run: Path) -> Lessons:
    """Lessons as a process of its own would have."""
    return Lessons(run, {"human": 1.0})


def answer(run: Path, *numbers: int) -> None:
    desk = desk_of(run)
    for number in numbers:
        desk.answer(Question(number, "train", "ana"), Choice(good=(0,)))


def test_a_damaged_group_is_left_out_and_told(tmp_path):
    for number in range(3):
        add_group(tmp_path, number)
    answer(tmp_path, 0, 1, 2)
    about = tmp_path / "teach" / "000001" / "group.json"
    whole = about.read_text()
    for damage in ("", "{", "[]", "{}", json.dumps({**json.loads(whole), "number": 7})):
        about.write_text(damage)
        lessons = lessons_of(tmp_path)
        assert lessons.teaching() == [0, 2]
        assert str(about) in lessons.groups.damaged[1]
        assert lessons.next_number() == 3
    about.write_text(whole)
    assert lessons_of(tmp_path).teaching() == [0, 1, 2]


def test_the_number_of_a_deleted_group_is_not_given_again(tmp_path):
    """Its answers would be those to the new group's pictures, and an update that took it would have taken them."""
    for number in range(4):
        add_group(tmp_path, number)
    assert lessons_of(tmp_path).next_number() == 4
    answer(tmp_path, 3)
    shutil.rmtree(tmp_path / "teach" / "000003")
    assert lessons_of(tmp_path).next_number() == 4
    Updates(tmp_path).add(Update(0, (5,), ()))
    assert lessons_of(tmp_path).next_number() == 6


def test_only_groups_that_can_be_asked_about_are_waited_for(tmp_path):
    add_group(tmp_path, 0)
    add_group(tmp_path, 1)
    (tmp_path / "teach" / "000000" / "1.png").unlink()
    lessons = lessons_of(tmp_path)
    assert [group.number for group in lessons.waiting()] == [1]
    assert [group.number for group in lessons.unanswered()] == [0, 1]


def test_an_update_whose_line_was_cut_short_does_not_hide_the_next(tmp_path):
    updates = Updates(tmp_path)
    updates.add(Update(0, (0, 1), ()))
    with open(updates.path, "ab") as file:
        file.write(b'{"iteration": 1, "new": [2' + b"\xff")
    assert [update.iteration for update in Updates(tmp_path).before(1)] == [0]
    updates.add(Update(1, (2, 3), (0,)))
    assert [update.new for update in Updates(tmp_path).all()] == [(0, 1), (2, 3)]


def test_what_a_killed_trainer_left_unfinished_is_removed(tmp_path):
    add_group(tmp_path, 0)
    (tmp_path / "teach" / ".000001.123.part").mkdir()
    Groups(tmp_path).tidy()
    assert [path.name for path in (tmp_path / "teach").iterdir()] == ["000000"]
