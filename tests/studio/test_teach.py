"""What the studio asks people who teach a model, what it keeps, and what it tells."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import Server
from starlette.testclient import TestClient
from studio_runs import SCRIPT, listed, made, training
from taught_runs import NEVER, grouped, learned, taught

from dgpo.studio.app import app
from dgpo.studio.classroom import as_drawn, as_shown
from dgpo.teach import desk
from dgpo.teach.groups import BLIND, Groups
from dgpo.teach.picks import Choice, Picks

HERE = "http://127.0.0.1:8300"
GUIDE = Path(__file__).parents[2] / "docs/teach.md"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return taught(tmp_path / "runs" / "cats", groups=4)


@pytest.fixture
def web(run: Path) -> TestClient:
    return client(run.parent)


def client(folder: Path, token: str = "token", open: bool = True) -> TestClient:
    return TestClient(app(folder, token, open=open), base_url=HERE)


def ask(web: TestClient, who: str = "ana", **more: str) -> dict[str, Any]:
    return web.get("/api/teach/next", params={"who": who, **more}).json()


def give(web: TestClient, group: str, who: str = "ana", **answer: Any) -> Any:
    return web.post("/api/teach/answer", json={"group": group, "who": who, **(answer or {"good": [0]})})


def status(web: TestClient) -> dict[str, Any]:
    return web.get("/api/teach/status").json()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "picks.jsonl").read_text().splitlines()]


def test_a_question_has_a_prompt_and_pictures_and_its_answer_is_a_line(run: Path, web: TestClient):
    asked = ask(web)
    assert {name: asked[name] for name in ("group", "kind", "prompt", "size", "left", "run", "tiny")} == {
        "group": "0", "kind": "train", "prompt": "prompt of group 0", "size": 4, "left": 3, "run": "cats", "tiny": True
    }  # fmt: skip
    for place, address in enumerate(asked["images"]):
        assert web.get(address).content == (run / f"teach/000000/{place}.png").read_bytes()
        assert "immutable" in web.get(address).headers["Cache-Control"]
    saved = give(web, "0", good=[0, 3], bad=[1]).json()
    assert (saved["saved"], saved["left"], saved["next"]["group"]) == ("0", 2, "1")
    (line,) = lines(run)
    assert (line["group"], line["asked"], line["who"], line["good"], line["bad"]) == (0, "train", "ana", [0, 3], [1])
    assert line["prompt"] == "prompt of group 0"
    assert [*line["images"]] == [*Groups(run).all()[0].images]


@pytest.mark.parametrize(
    "answer", [{"ranks": [2, 1, 1, 3]}, {"same": True}, {"skip": True}, {"bad": [2]}, {"good": [], "bad": [0]}]
)
def test_every_form_of_an_answer_is_kept(run: Path, web: TestClient, answer: dict[str, Any]):
    assert give(web, "0", **answer).status_code == 200
    for name, value in answer.items():
        assert lines(run)[0].get(name, []) == value


def test_what_follows_is_told_ahead_and_comes_after_the_answer(web: TestClient):
    first = ask(web)
    following = ask(web, after=first["group"])
    assert [first["group"], following["group"]] == ["0", "1"]
    assert ask(web)["group"] == "0", "a page that is loaded anew shows the same"
    assert ask(web, after="0")["group"] == "1"
    assert ask(web, "bo")["group"] == "2"
    assert give(web, "0").json()["next"] == following | {"left": 2}
    assert ask(web)["group"] == "1"


def test_what_a_person_has_for_later_goes_to_whoever_has_nothing(web: TestClient):
    assert [ask(web)["group"], ask(web, after="0")["group"]] == ["0", "1"]
    assert [ask(web, "bo")["group"], ask(web, "bo", after="2")["group"]] == ["2", "3"]
    assert ask(web, "cy")["group"] == "1"
    assert ask(web, "di")["group"] == "3"
    waits = web.get("/api/teach/next", params={"who": "eve"})
    assert waits.status_code == 202
    assert give(web, "0").json()["next"] is None, "what was shown to nobody is another's now"


def test_seconds_count_from_when_a_group_is_shown(run: Path, web: TestClient, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(desk.time, "monotonic", lambda: now[0])
    ask(web)
    ask(web, after="0")
    now[0] += 5
    give(web, "0")
    now[0] += 3
    give(web, "1")
    assert [line["seconds"] for line in lines(run)] == [5, 3]


def test_after_a_new_start_what_a_page_shows_stays_its_own(run: Path, web: TestClient):
    assert ask(web)["group"] == "0"
    web = client(run.parent)
    assert ask(web, after="0")["group"] == "1"
    assert ask(web, "bo")["group"] == "2"
    assert give(web, "0").status_code == 200


def test_a_group_is_one_persons_even_where_ten_ask_at_once(tmp_path: Path):
    run = taught(tmp_path / "runs" / "many", groups=30, size=2)
    web = client(run.parent)

    def teach(who: str) -> int:
        asked = ask(web, who)
        count = 0
        while asked and "group" in asked:
            ask(web, who, after=asked["group"])
            answered = give(web, asked["group"], who)
            assert answered.status_code == 200, answered.text
            asked, count = answered.json()["next"] or ask(web, who), count + 1
        return count

    with ThreadPoolExecutor(10) as pool:
        counts = [*pool.map(teach, [f"person {number}" for number in range(10)])]
    assert sum(counts) == 30
    assert sorted(line["group"] for line in lines(run)) == [*range(30)]


def test_an_answer_that_is_sent_twice_is_kept_once_and_another_one_is_refused(run: Path, web: TestClient):
    assert give(web, "0", good=[1]).status_code == 200
    assert give(web, "0", good=[1]).status_code == 200, "its sender did not hear of it"
    other = give(web, "0", good=[2])
    assert (other.status_code, other.json()["error"]) == (
        409, "you have answered this group already; nothing was changed. Undo takes an own answer back"
    )  # fmt: skip
    late = give(web, "0", "bo")
    assert (late.status_code, "ana has answered this group already" in late.json()["error"]) == (409, True)
    assert len(lines(run)) == 1


def test_undo_takes_back_any_number_and_asks_again_with_what_was_said(run: Path, web: TestClient):
    give(web, "0", good=[1], bad=[2])
    give(web, "1", ranks=[4, 3, 2, 1])
    assert give(web, "2", "bo", same=True).json()["next"]["group"] == "3"
    back = web.post("/api/teach/undo", json={"who": "ana"}).json()
    assert (back["group"], back["before"]) == ("1", {"ranks": [4, 3, 2, 1]})
    back = web.post("/api/teach/undo", json={"who": "ana"}).json()
    assert (back["group"], back["before"]) == ("0", {"good": [1], "bad": [2]})
    assert [q.group for q in Picks(run).all()] == [2]
    order = ["0"]
    while following := give(web, order[-1]).json()["next"]:
        order.append(following["group"])
    assert order == ["0", "1"], "what was taken back is asked in its former order"
    empty = web.post("/api/teach/undo", json={"who": "cy"})
    assert (empty.status_code, empty.json()["error"]) == (400, "cy has no answer to take back")


def test_a_repeated_group_has_other_places_and_its_answer_is_mapped_back(tmp_path: Path):
    human = replace(NEVER, repeat_every=5)
    run = taught(tmp_path / "runs" / "again", groups=8, human=human)
    web = client(run.parent)
    for number in range(5):
        assert give(web, str(number), good=[0]).status_code == 200
    asked = ask(web)
    assert (asked["group"], asked["kind"], asked["prompt"]) == ("0-again", "train", "prompt of group 0")
    shown = [web.get(address).content for address in asked["images"]]
    files = [(run / f"teach/000000/{picture}.png").read_bytes() for picture in range(4)]
    assert shown != files
    assert sorted(shown) == sorted(files)
    same = shown.index(files[0])
    assert give(web, "0-again", good=[same]).status_code == 200
    assert (lines(run)[-1]["asked"], lines(run)[-1]["good"]) == ("again", [0])
    assert status(web)["people"]["ana"]["consistency"] | {"low": 0, "high": 0} == {
        "share": 1.0, "low": 0, "high": 0, "of": 3
    }  # fmt: skip
    back = web.post("/api/teach/undo", json={"who": "ana"}).json()
    assert (back["group"], back["before"]) == ("0-again", {"good": [same]})
    ranks = [2, 1, 1, 3]
    give(web, "0-again", ranks=ranks)
    assert [lines(run)[-1]["ranks"][files.index(picture)] for picture in shown] == ranks


@pytest.mark.parametrize("choice", [Choice(good=(0, 2), bad=(1,)), Choice(ranks=(3, 1, 2, 1)), Choice(same=True)])
def test_places_and_pictures_map_to_each_other(choice: Choice):
    order = [2, 0, 3, 1]
    assert as_shown(as_drawn(choice, order), order) == choice
    assert as_drawn(Choice(good=(0,), bad=(3,)), order) == Choice(good=(2,), bad=(1,))
    assert as_drawn(Choice(ranks=(1, 2, 3, 4)), order).ranks == (2, 4, 1, 3)


def test_another_person_is_asked_about_an_answered_group(tmp_path: Path):
    run = taught(tmp_path / "runs" / "also", groups=6, human=replace(NEVER, share_every=1))
    web = client(run.parent)
    give(web, "0", good=[0], bad=[3])
    give(web, "1", "bo", good=[0])
    asked = ask(web, "bo")
    assert asked["group"] == "0-also"
    files = [(run / f"teach/000000/{picture}.png").read_bytes() for picture in range(4)]
    places = [files.index(web.get(address).content) for address in asked["images"]]
    give(web, "0-also", "bo", good=[places.index(0)], bad=[places.index(3)])
    agreement = status(web)["agreement"]
    assert (agreement["share"], agreement["of"]) == (1.0, 5)
    lonely = give(web, "3-also", "bo")
    assert (lonely.status_code, "another person has not answered group 3" in lonely.json()["error"]) == (400, True)


def test_nobody_is_told_which_picture_is_the_trained_models(tmp_path: Path):
    run = taught(tmp_path / "runs" / "blind", groups=3)
    for number in range(9):
        grouped(run, kind=BLIND, now=number % 2)
    web = client(run.parent)
    told = []
    for _ in range(9):
        asked = ask(web)
        assert (asked["kind"], asked["size"]) == ("blind", 2)
        number = int(asked["group"])
        answered = give(web, asked["group"], good=[Groups(run).all()[number].now])
        told += [json.dumps(asked), answered.text, web.get("/api/teach/status").text]
        rate = status(web)["win_rate"]
        compared = status(web)["comparisons"]
        assert rate["of"] == compared // 4 * 4, "of four at a time, or it would give the last answer away"
    assert not [text for text in told if '"now"' in text or '"iteration": 0' in text]
    rate = status(web)["win_rate"]
    assert (rate["share"], rate["of"], round(rate["low"], 2), rate["high"]) == (1.0, 8, 0.68, 1.0)
    assert ask(web)["group"] == "0"


def test_the_status_says_how_far_the_run_is(run: Path, web: TestClient):
    before = status(web)
    assert (before["state"], before["answers"], before["left"], before["each"], before["last"]) == (
        "stopped", 0, 3, 3, None
    )  # fmt: skip
    assert before["resume"] == f"dgpo teach --resume {run}"
    with training(run):
        for number in range(3):
            give(web, str(number))
        assert (status(web)["left"], status(web)["learning"], status(web)["resume"]) == (0, False, "")
        learned(run, 1, [0, 1, 2], done=False)
        now = status(web)
        assert (now["running"], now["learning"], now["updates"], now["left"]) == (True, True, 0, 3)
        assert (now["last"]["iteration"], now["last"]["metrics"]) == (1, None)
        assert "learns from the answers" in ask(web, "bo", run="cats").get("waiting", "learns from the answers")
        with open(run / "metrics.jsonl", "a") as file:
            file.write('{"iteration": 1, "train/score/human": 0.5}\n')
        now = status(web)
        assert (now["learning"], now["updates"]) == (False, 1)
        assert (now["last"]["new"], now["last"]["earlier"], now["last"]["metrics"]["train/score/human"]) == (3, 0, 0.5)
        assert now["people"]["ana"]["answers"] == 3


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("running", "the next group is being drawn"),
        ("learning", "the model learns from the answers"),
        ("taken", "others have all groups that are drawn"),
        ("stopped", "no process trains, and all groups that were drawn are answered"),
        ("finished", "the run is finished after 10 iterations"),
        ("gone", "pictures are gone from "),
    ],
)
def test_while_there_is_nothing_to_ask_it_says_why(tmp_path: Path, state: str, why: str):
    run = taught(tmp_path / "runs" / "empty", groups=1)
    web = client(run.parent)
    if state == "gone":
        (run / "teach/000000/2.png").unlink()
    elif state == "taken":
        ask(web, "bo")
    else:
        give(web, "0")
    if state in ("learning", "finished"):
        learned(run, 10, [0], done=state == "finished")
    with training(run if state in ("running", "learning", "taken") else made(tmp_path / "other", iterations=1)):
        answer = web.get("/api/teach/next", params={"who": "ana"})
    assert answer.status_code == 202
    assert answer.json()["waiting"].startswith(why)
    assert bool(answer.json()["resume"]) == (state in ("stopped", "finished", "gone"))


def test_a_group_whose_pictures_are_gone_is_not_asked_and_its_picture_is_one_message(run: Path, web: TestClient):
    asked = ask(web)
    (run / "teach/000000/1.png").unlink()
    assert ask(web)["group"] == "1"
    gone = web.get(asked["images"][1])
    assert (gone.status_code, "group 0 has no picture 1 (any more)" in gone.text) == (404, True)
    give(web, "1")
    shutil.rmtree(run / "teach/000001")
    back = web.post("/api/teach/undo", json={"who": "ana"})
    assert (back.status_code, "whose pictures are gone" in back.json()["error"]) == (400, True)
    assert len(Picks(run).all()) == 1


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"[1]", 400, "it must be an object in braces"),
        (b"[" * 10_000, 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b"{" + b" " * 70_000 + b"}", 413, "the body has more than 65536 bytes"),
        ({}, 400, "who=None must be a name of 1 to 40 letters"),
        ({"who": " "}, 400, "who=' ' must be a name"),
        ({"who": "x" * 41}, 400, "must be a name of 1 to 40 letters"),
        ({"who": "a\nb"}, 400, "must be a name of 1 to 40 letters"),
        ({"who": ["ana"]}, 400, "must be a name"),
        ({"who": "ana"}, 404, "has no group None"),
        ({"who": "ana", "group": 0, "good": [0]}, 404, "has no group 0; GET /api/teach/next names one"),
        ({"who": "ana", "group": "99", "good": [0]}, 404, "has no group '99'"),
        ({"who": "ana", "group": "9" * 5000, "good": [0]}, 404, "has no group"),
        ({"who": "ana", "group": "../../1", "good": [0]}, 404, "has no group"),
        ({"who": "ana", "group": "0-blind", "good": [0]}, 404, "has no group"),
        ({"who": "ana", "group": "0-", "good": [0]}, 404, "has no group"),
        ({"who": "ana", "group": "0-again", "good": [0]}, 400, "ana has not answered group 0"),
        ({"who": "ana", "group": "0"}, 400, "the answer has nothing; give good and bad pictures"),
        ({"who": "ana", "group": "0", "good": [0], "same": True}, 400, "the answer has good and bad as well as same"),
        ({"who": "ana", "group": "0", "good": [4]}, 400, "good names picture 4, and there are pictures 0 to 3"),
        ({"who": "ana", "group": "0", "good": [-1]}, 400, "good names picture -1"),
        ({"who": "ana", "group": "0", "good": [0.5]}, 400, "must be a list of pictures' numbers"),
        ({"who": "ana", "group": "0", "good": "0"}, 400, "must be a list of pictures' numbers"),
        ({"who": "ana", "group": "0", "good": [0], "bad": [0]}, 400, "picture 0 is good as well as bad"),
        ({"who": "ana", "group": "0", "ranks": [1, 2]}, 400, "must be a whole number for each of the 4 pictures"),
        ({"who": "ana", "group": "0", "skip": "yes"}, 400, "skip='yes' must be true or false"),
        ({"who": "ana", "group": "0", "goood": [0]}, 400, "an answer has no 'goood'. Did you mean 'good'?"),
        ({"who": "ana", "group": "0", "good": [0], "run": "dogs"}, 404, "there is no run 'dogs'"),
        ({"who": "ana", "group": "0", "good": [0], "run": ["cats"]}, 400, "must be the name of a run"),
    ],
)
def test_a_wrong_answer_is_one_message(run: Path, web: TestClient, body: Any, code: int, message: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = web.post("/api/teach/answer", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == code
    assert message in answer.json()["error"]
    assert not (run / "picks.jsonl").exists() or not lines(run)


@pytest.mark.parametrize("path", ["0/4", "0/-1", "0/x", f"0/{'9' * 5000}", "9/0", "0-blind/0", "..%2f0/0", "0/..%2f0"])
def test_a_picture_that_is_none_is_not_there(web: TestClient, path: str):
    assert web.get(f"/teach/cats/picture/{path}").status_code == 404


def test_a_picture_that_is_a_link_out_of_the_run_is_not_shown(run: Path, web: TestClient, tmp_path: Path):
    picture = run / "teach/000000/0.png"
    shutil.move(picture, tmp_path / "secret.png")
    picture.symlink_to(tmp_path / "secret.png")
    assert web.get(ask(web)["images"][0]).status_code == 404


@pytest.mark.parametrize("who", ["", " ", "x" * 41, "a\x00b"])
def test_who_asks_needs_a_name(web: TestClient, who: str):
    answer = web.get("/api/teach/next", params={"who": who})
    assert (answer.status_code, "must be a name of 1 to 40 letters" in answer.json()["error"]) == (400, True)


def test_a_full_disk_is_said_and_nothing_counts(run: Path, web: TestClient, monkeypatch: pytest.MonkeyPatch):
    give(web, "0")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("dgpo.teach.picks.os.fsync", full)
        refused = give(web, "1")
    assert (refused.status_code, "No space left on device. Make room" in refused.json()["error"]) == (507, True)
    assert [line["group"] for line in lines(run)] == [0]
    assert status(web)["answers"] == 1
    assert give(web, "1", good=[2]).status_code == 200
    assert [line["group"] for line in lines(run)] == [0, 1]


def test_without_a_name_the_only_taught_run_is_meant_or_the_newest_in_progress(tmp_path: Path):
    root = tmp_path / "runs"
    made(root / "plain", iterations=1)
    web = client(root)
    none = web.get("/api/teach/status")
    assert (none.status_code, "is taught by people; dgpo teach MODEL starts one" in none.json()["error"]) == (400, True)
    taught(root / "first", groups=1)
    assert status(web)["run"] == "first"
    taught(root / "second", groups=1)
    several = web.get("/api/teach/status").json()["error"]
    assert "no run is in progress, and people teach several: say which with run: " in several
    with training(root / "first"):
        assert status(web)["run"] == "first"
        with training(root / "second"):
            os.utime(root / "first/config.yaml", (1, 1))
            assert status(web)["run"] == "second"
    assert web.get("/api/teach/status?run=first").json()["run"] == "first"


def test_a_run_without_people_and_one_of_another_version_say_so(tmp_path: Path):
    made(tmp_path / "runs" / "plain", iterations=1)
    old = taught(tmp_path / "runs" / "old", groups=1)
    with open(old / "config.yaml", "a") as file:
        file.write("an_old_field: 3\n")
    (old / "environment.json").write_text('{"dgpo": "0.0.1"}')
    web = client(tmp_path / "runs")
    plain = web.get("/api/teach/next?who=ana&run=plain")
    assert (plain.status_code, "plain is not taught by people: its rewards are shapes" in plain.json()["error"]) == (
        400, True
    )  # fmt: skip
    assert "is not taught by people" in web.get("/teach/plain").text
    unread = web.get("/api/teach/next?who=ana&run=old").json()["error"]
    assert "the run old cannot be taught: " in unread
    assert "an_old_field" in unread
    assert "written by dgpo 0.0.1" in unread
    assert web.get("/teach/none").status_code == 404
    (old / "teach/000000/group.json").write_text('{"number": 0}')
    shutil.copy(tmp_path / "runs/plain/environment.json", old)
    config = (old / "config.yaml").read_text().replace("an_old_field: 3\n", "")
    (old / "config.yaml").write_text(config)
    damaged = web.get("/api/teach/next?who=ana&run=old")
    assert (damaged.status_code, "is no group of this version of dgpo" in damaged.json()["waiting"]) == (202, True)


def test_a_run_that_is_being_written_is_taught_as_soon_as_it_has_groups(tmp_path: Path):
    run = taught(tmp_path / "runs" / "begun")
    web = client(run.parent)
    with training(run):
        assert ask(web)["waiting"] == "the next group is being drawn"
        (run / "teach").mkdir()
        (run / "teach/.000000.99.part").mkdir()
        assert ask(web)["waiting"] == "the next group is being drawn"
        grouped(run)
        assert ask(web)["group"] == "0"
    (run / "picks.jsonl").write_text('{"group": 0, "asked": "train", "wh')
    assert status(web)["answers"] == 0
    assert give(web, "0").status_code == 200, "a line that was cut short was never acknowledged"
    assert status(web)["answers"] == 1


def test_a_run_that_begins_anew_in_its_folder_is_taught_from_the_start(run: Path, web: TestClient):
    give(web, "0")
    run.rename(run.with_name("moved"))
    shutil.move(run.with_name("moved"), run.parent.parent / "aside")
    taught(run, groups=1)
    assert ask(web)["group"] == "0"
    assert status(web)["answers"] == 0


def test_settings_that_a_resumed_run_has_changed_count(run: Path, web: TestClient):
    assert ask(web)["group"] == "0"
    config = (run / "config.yaml").read_text()
    assert "share_every: 0" in config
    (run / "config.yaml").write_text(config.replace("share_every: 0", "share_every: 1"))
    give(web, "1", "bo")
    give(web, "0")
    assert ask(web)["group"] == "1-also"


def test_the_page_and_the_links_to_it(run: Path, web: TestClient):
    made(run.parent / "plain", iterations=1)
    page = web.get("/teach/cats")
    assert page.status_code == 200
    assert not re.search(r"<style|<script>|<script [^>]*>[^<]|\son\w+=| style=", page.text)
    assert 'href="/teach/cats"' in web.get("/run/cats").text
    assert 'href="/teach' not in web.get("/run/plain").text
    assert {name: one["teach"] for name, one in listed(web).items()} == {"cats": "/teach/cats", "plain": ""}
    for name in ("teach.js", "teach_board.js", "teach_learned.js"):
        assert "http" not in web.get(f"/static/{name}").text


def test_names_and_prompts_that_are_markup_stay_text(tmp_path: Path):
    run = taught(tmp_path / "runs" / SCRIPT, name="<b>cats")
    grouped(run, prompt="</h1><script>alert(2)</script>")
    web = client(run.parent)
    asked = ask(web)
    assert asked["prompt"] == "</h1><script>alert(2)</script>"
    assert web.get(asked["images"][0]).status_code == 200
    (listing,) = listed(web).values()
    page = web.get(listing["teach"]).text
    assert "<script>alert" not in page
    assert "<b>cats" not in page


def test_a_page_of_another_site_changes_and_holds_nothing(run: Path, web: TestClient):
    evil = {"Origin": "http://evil.example", "X-Dgpo-Token": "token"}
    for path in ("answer", "undo"):
        assert web.post(f"/api/teach/{path}", json={"who": "x"}, headers=evil).status_code == 403
        page = {"Origin": HERE}
        assert web.post(f"/api/teach/{path}", json={"who": "x"}, headers=page).status_code == 403, "without the token"
    cross = {"Sec-Fetch-Site": "cross-site"}
    assert web.get("/api/teach/next?who=x", headers=cross).status_code == 403
    away = client(run.parent, open=False)
    assert away.get("/api/teach/next?who=x").status_code == 401
    assert away.post("/api/teach/answer", json={"who": "x", "group": "0", "same": True}).status_code == 401
    bearer = {"Authorization": "Bearer token"}
    assert away.post(
        "/api/teach/answer", json={"who": "x", "group": "0", "same": True}, headers=bearer
    ).status_code == 200  # fmt: skip


def test_two_studios_of_one_run_keep_one_answer(run: Path):
    webs = [client(run.parent), client(run.parent)]
    start = threading.Barrier(2)

    def race(number: int) -> int:
        start.wait()
        return give(webs[number], "0", f"person {number}").status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(race, range(2))) == [200, 409]
    assert len(lines(run)) == 1


def test_the_script_of_the_guide_answers_every_group(run: Path, capsys: pytest.CaptureFixture[str]):
    (script,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    server = Server(run.parent)
    try:
        exec(script.replace(HERE, server.address), {})
    finally:
        server.stop()
    assert [(line["who"], len(line["good"]), len(line["bad"])) for line in lines(run)] == [("script", 1, 1)] * 4
    assert capsys.readouterr().out.splitlines()[0] == "2 answers until the next update"
