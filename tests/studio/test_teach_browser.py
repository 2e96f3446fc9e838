"""People teach a model in a real browser. `make test-browser` installs Chromium and Playwright."""

from __future__ import annotations

import errno
import json
import os
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="make test-browser installs it")

from browsing import BROKEN, WAIT
from playwright.sync_api import Page, expect
from studio_runs import evaluated, training
from taught_runs import NEVER, grouped, learned, taught
from waiting import until

from dgpo.teach.groups import BLIND

pytestmark = pytest.mark.slow
expect.set_options(timeout=WAIT)

NAMED = """[...document.querySelectorAll('button, a, input, select, dialog, img')].filter((each) =>
    !each.hasAttribute('alt') && !each.ariaLabel && !each.labels?.length && !each.innerText?.trim() &&
    each.offsetParent !== null).map((each) => each.outerHTML.slice(0, 90))"""
QUICK = """() => new Promise((done) => {
    const prompt = document.getElementById('prompt'), began = performance.now();
    new MutationObserver(async (_, observer) => {
        observer.disconnect();
        await Promise.all([...document.querySelectorAll('.choice img')].map((image) => image.decode()));
        requestAnimationFrame(() => done(performance.now() - began));
    }).observe(prompt, { childList: true });
    for (const key of ['1', 'Enter']) document.body.dispatchEvent(
        new KeyboardEvent('keydown', { key, code: key === '1' ? 'Digit1' : key, bubbles: true }));
})"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return taught(tmp_path / "runs" / "cats", groups=6)


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "picks.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last(run: Path) -> dict[str, Any]:
    return {name: lines(run)[-1][name] for name in ("good", "bad", "ranks", "same", "skip") if name in lines(run)[-1]}


def named(page: Page, who: str = "ana") -> Page:
    page.get_by_label("Your name").fill(who)
    page.keyboard.press("Enter")
    return page


def shows(page: Page, group: int) -> None:
    expect(page.locator("#prompt")).to_have_text(f"prompt of group {group}")


def saved(page: Page, run: Path, answers: int) -> None:
    expect(page.locator("#saved")).to_have_text("saved")
    until(lambda: len(lines(run)) == answers)


def mark(page: Page, place: int) -> str:
    return page.locator(".choice").nth(place).get_attribute("data-mark") or ""


def test_a_name_is_asked_once_and_can_be_changed(serve, visit, run: Path):
    page = visit(serve(run.parent), "/teach/cats")
    expect(page.get_by_label("Your name")).to_be_focused()
    expect(page.locator("#asking")).to_be_hidden()
    named(page, "ana")
    shows(page, 0)
    page.reload()
    shows(page, 0)
    expect(page.locator("#who")).to_have_text("ana")
    page.get_by_role("button", name="Change the name").click()
    expect(page.get_by_label("Your name")).to_have_value("ana")
    named(page, "bo")
    until(lambda: page.locator("#prompt").inner_text() in ("prompt of group 1", "prompt of group 2"))  # ana has others
    page.keyboard.press("s")
    saved(page, run, 1)
    assert lines(run)[0]["who"] == "bo"


def test_every_key(serve, visit, tmp_path: Path):
    run = taught(tmp_path / "runs" / "cats", groups=9, size=12)
    page = named(visit(serve(run.parent), "/teach/cats"))
    press = page.keyboard.press
    shows(page, 0)
    press("Enter")
    expect(page.locator("#said")).to_contain_text("Mark a picture first")
    for keys in ("1", "Shift+2", "0", "Shift+B", "c", "9", "9", "3", "Shift+3"):
        press(keys)
    assert [mark(page, place) for place in range(12)] == [
        "good", "bad", "bad", "", "", "", "", "", "", "good", "bad", "good"
    ]  # fmt: skip
    expect(page.get_by_label("picture 12 of 12: good")).to_be_visible()
    press("Enter")
    saved(page, run, 1)
    assert last(run) == {"good": [0, 9, 11], "bad": [1, 2, 10]}
    shows(page, 1)
    press("s")
    shows(page, 2)
    assert last(run) == {"same": True}
    press("k")
    shows(page, 3)
    assert last(run) == {"skip": True}
    for group in (2, 1, 0):
        press("u")
        shows(page, group)
    assert [mark(page, place) for place in (0, 1)] == ["good", "bad"], "what was said is marked"
    press("Shift+1")
    press("Enter")
    shows(page, 1)
    assert last(run) == {"good": [9, 11], "bad": [0, 1, 2, 10]}
    press("m")
    expect(page.locator("#what")).to_have_text("Which of these 12 pictures is the best?")
    press("2")
    shows(page, 2)
    assert last(run) == {"good": [1], "bad": []}
    press("m")
    for keys in ("3", "1", "2", "1"):
        press(keys)
    assert page.locator(".choice").nth(2).get_by_role("button", name="picture 3 of 12: rank 1").is_visible()
    press("Enter")
    shows(page, 3)
    assert last(run) == {"ranks": [3, 2, 1, *[3] * 9]}
    press("u")
    shows(page, 2)
    assert page.locator(".choice .mark").nth(2).inner_text() == "1"
    press("Enter")
    shows(page, 3)
    press("m")
    press(" ")
    expect(page.locator("#zoom-mark")).to_have_text("picture 1: not marked")
    press("ArrowRight")
    press("2")
    expect(page.locator("#zoom-mark")).to_have_text("picture 2: good")
    press("ArrowLeft")
    press("ArrowLeft")
    expect(page.locator("#zoom-mark")).to_have_text("picture 12: not marked")
    press(" ")
    expect(page.locator("#zoom")).to_be_hidden()
    press("?")
    expect(page.locator("#keys")).to_be_visible()
    press("?")
    expect(page.locator("#keys")).to_be_hidden()


def test_every_button(serve, visit, run: Path):
    page = named(visit(serve(run.parent), "/teach/cats"))
    shows(page, 0)
    tiles = page.locator(".choice")

    def button(name: str) -> None:
        page.get_by_role("button", name=name).click()

    for wanted in ("good", "bad", ""):
        tiles.nth(0).locator(".picture").click()
        assert mark(page, 0) == wanted
    tiles.nth(1).locator(".picture").click(button="right")
    assert mark(page, 1) == "bad"
    page.get_by_label("picture 3: good").click()
    page.get_by_label("picture 4: bad").click()
    expect(page.get_by_label("picture 4: bad")).to_have_attribute("aria-pressed", "true")
    button("Zoom")
    expect(page.locator("#zoom-mark")).to_have_text("picture 4: bad")
    page.locator("#zoom").click()
    page.keyboard.press("Enter")
    shows(page, 1)
    assert last(run) == {"good": [2], "bad": [1, 3]}
    button("All the same")
    shows(page, 2)
    button("Skip")
    shows(page, 3)
    assert [line.get("same") or line.get("skip") for line in lines(run)] == [None, True, True]
    button("Undo")
    shows(page, 2)
    page.get_by_label("Mode").select_option("pick the best")
    page.get_by_label("picture 2: best").click()
    shows(page, 3)
    assert last(run) == {"good": [1], "bad": []}
    page.get_by_label("Mode").select_option("rank: click in order")
    for place in (3, 0):
        tiles.nth(place).locator(".picture").click()
    page.get_by_label("picture 2: rank").click()
    button("Send")
    shows(page, 4)
    assert last(run) == {"ranks": [2, 3, 4, 1]}
    button("Keys")
    expect(page.locator("#keys")).to_contain_text("all the same")
    page.get_by_label("picture 1: rank").focus()
    page.keyboard.press("Enter")
    assert mark(page, 0) == "rank", "a button that has the focus has its own Enter"
    shows(page, 4)


def test_two_people_never_get_the_same_group(serve, visit, tmp_path: Path):
    run = taught(tmp_path / "runs" / "cats", groups=8)
    studio = serve(run.parent)
    pages = [named(visit(studio, "/teach/cats"), who) for who in ("ana", "bo")]
    shows(pages[0], 0)
    for count in range(1, 9):
        page = pages[count % 2]
        if page.locator("#asking").is_hidden():
            page = pages[(count + 1) % 2]
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        until(lambda count=count: len(lines(run)) == count)
        expect(page.locator("#saved")).to_have_text("saved")
    assert sorted(line["group"] for line in lines(run)) == [*range(8)]
    assert {line["who"] for line in lines(run)} == {"ana", "bo"}
    for page in pages:
        expect(page.locator("#why")).to_contain_text("No process trains")
        expect(page.locator("#people")).to_contain_text("bo: ")
    assert visit.wrong == []


def test_a_server_that_dies_within_a_group_loses_no_answer(serve, visit, run: Path):
    studio = serve(run.parent)
    page = named(visit(studio, "/teach/cats"))
    shows(page, 0)
    page.keyboard.press("2")
    studio.stop()
    page.keyboard.press("Enter")
    expect(page.locator("#saved")).to_contain_text("Your answer is kept here and sent again until it is saved")
    assert lines(run) == []
    studio.restart()
    shows(page, 1)
    saved(page, run, 1)
    assert last(run) == {"good": [1], "bad": []}
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    shows(page, 2)
    expect(page.locator("#trainer")).to_contain_text("No process trains this run")
    said = [line for line in visit.wrong if "403" not in line]  # the token is another one
    assert {*said} <= {f"Failed to load resource: net::{error}" for error in BROKEN}
    visit.wrong.clear()


def test_the_next_group_is_there_at_once_in_a_run_of_four_hundred(serve, visit, tmp_path: Path):
    run = taught(tmp_path / "runs" / "many", groups=1, size=8)
    about = json.loads((run / "teach/000000/group.json").read_text())
    for number in range(1, 400):
        shutil.copytree(run / "teach/000000", run / f"teach/{number:06d}", copy_function=os.link)
        (run / f"teach/{number:06d}/group.json").unlink()
        told = {**about, "number": number, "prompt": f"prompt of group {number}"}
        (run / f"teach/{number:06d}/group.json").write_text(json.dumps(told))
    page = named(visit(serve(run.parent), "/teach/many"))
    shows(page, 0)
    with training(run):
        took = []
        for group in range(1, 8):
            page.wait_for_timeout(150)
            took.append(page.evaluate(QUICK))
            shows(page, group)
    assert statistics.median(took) < 300, took
    assert [line["group"] for line in lines(run)] == [*range(7)]


def test_a_prompt_that_is_a_script_tag_is_read_not_run(serve, visit, tmp_path: Path):
    run = taught(tmp_path / "runs" / "<b>cats")
    grouped(run, prompt="<script>alert(2)</script><img src=x onerror=alert(3)>")
    page = visit(serve(run.parent))
    page.get_by_role("link", name="teach <b>cats").click()
    named(page, "<i>ana")
    expect(page.locator("#prompt")).to_have_text("<script>alert(2)</script><img src=x onerror=alert(3)>")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#people")).to_contain_text("<i>ana: 1 answer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_names_its_parts(serve, visit, tmp_path: Path, scheme: str):
    run = taught(tmp_path / "runs" / "cats", groups=2, size=6)
    for iteration in (0, 60):
        evaluated(run, iteration)
    page = visit(
        serve(run.parent), "/teach/cats", viewport={"width": 360, "height": 700}, color_scheme=scheme, has_touch=True
    )
    assert page.evaluate(NAMED) == []
    named(page)
    shows(page, 0)
    expect(page.locator("#pairs figure")).to_have_count(6)
    page.locator(".choice .picture").nth(0).tap()
    assert mark(page, 0) == "good"
    page.get_by_label("picture 2: bad").tap()
    page.get_by_role("button", name="Keys").tap()
    assert page.evaluate(NAMED) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [tile.bounding_box() for tile in page.locator(".choice").all()]
    assert [round(box["width"]) for box in boxes if box] == [162] * 6, "two in a row"
    page.get_by_role("button", name="Send").tap()
    shows(page, 1)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 19)"
    assert dark == (scheme == "dark")


def test_the_page_says_what_state_the_run_is_in(serve, visit, tmp_path: Path):
    run = taught(tmp_path / "runs" / "cats")
    page = visit(serve(run.parent), "/teach/cats")
    with training(run):
        named(page)
        expect(page.locator("#why")).to_have_text("The next group is being drawn.")
        expect(page.locator("#left")).to_have_text("3 more answers until the model learns again.")
        expect(page.locator("#trainer")).to_have_text("")
        grouped(run)
        shows(page, 0)
        page.keyboard.press("s")
        expect(page.locator("#waiting")).to_be_visible()
        learned(run, 1, [0], done=False)
        expect(page.locator("#trainer")).to_have_text("The model learns from the answers right now. Go on choosing.")
        expect(page.locator("#updates")).to_contain_text("The present one takes 1 new group and 0 earlier ones")
        page.keyboard.press("u")
        shows(page, 0)
        (run / "teach/updates.jsonl").unlink()
        learned(run, 1, [0])
        expect(page.locator("#updates")).to_contain_text("1 update done. The last one took 1 new group")
        expect(page.locator("#updates")).to_contain_text("earned 0.25 on average (good 1, bad −1); it took 3.0 s.")
    expect(page.locator("#trainer")).to_contain_text("No process trains this run: stopped after iteration 1 of 10")
    expect(page.locator("#trainer code")).to_have_text(f"dgpo teach --resume {run}")
    page.keyboard.press("s")
    expect(page.locator("#why")).to_contain_text("all groups that were drawn are answered")
    learned(run, 10, [])
    expect(page.locator("#left")).to_have_text("The run is finished.")
    expect(page.locator("#trainer")).to_contain_text("nothing learns from them unless it goes on with more")


def test_what_went_wrong_is_said_and_the_marks_stay(serve, visit, run: Path, monkeypatch: pytest.MonkeyPatch):
    page = named(visit(serve(run.parent), "/teach/cats"))
    shows(page, 0)
    (run / "picks.jsonl").write_text(
        json.dumps(
            {"group": 0, "asked": "train", "who": "bo", "images": [""] * 4, "same": True, "seconds": 1, "time": ""}
        )
        + "\n"
    )
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("bo has answered this group already")
    shows(page, 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("dgpo.teach.picks.os.fsync", full)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        expect(page.locator("#saved")).to_contain_text("No space left on device. Make room, and answer again")
    assert mark(page, 1) == "good"
    page.keyboard.press("Enter")
    shows(page, 2)
    assert [line["group"] for line in lines(run)] == [0, 1]
    for number in (2, 3):
        shutil.rmtree(run / f"teach/{number:06d}")
    page.reload()
    shows(page, 4)
    assert {*visit.wrong} <= {f"Failed to load resource: the server responded with a status of {code}" for code in (
        "409 (Conflict)", "507 (Insufficient Storage)", "404 (Not Found)"
    )}  # fmt: skip
    visit.wrong.clear()


def test_without_the_token_an_answer_is_not_sent_and_says_why(serve, visit, run: Path):
    studio = serve(run.parent, "a-token", open=False)
    page = named(visit(studio, "/teach/cats?token=a-token"))
    shows(page, 0)
    page.keyboard.press("1")
    studio.stop()
    studio.restart()
    page.keyboard.press("Enter")
    expect(page.locator("#saved")).to_contain_text(
        "a token is needed: open the whole link that dgpo studio has printed"
    )
    assert mark(page, 0) == "good"
    assert lines(run) == []
    page.close()  # which asks for the status every two seconds, and is refused each time
    visit.wrong.clear()


def test_comparisons_come_in_between_and_are_counted(serve, visit, tmp_path: Path):
    run = taught(tmp_path / "runs" / "cats", groups=1, human=replace(NEVER, blind_every=1))
    for number in range(4):
        grouped(run, kind=BLIND, now=number % 2)
    page = named(visit(serve(run.parent), "/teach/cats"))
    for number in range(4):
        shows(page, number + 1)
        expect(page.locator("#what")).to_have_text("Which of the two is better?")
        page.keyboard.press(str(number % 2 + 1) if number else "s")
        if number:
            page.keyboard.press("Enter")
    shows(page, 0)
    expect(page.locator("#win-rate")).to_have_text(
        "Of 4 comparisons the trained model won 3.5: 88 %, between 40 and 99 %. "
        "That is too few, or too even, to tell which is better."
    )
