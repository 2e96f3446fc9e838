"""The studio in a real browser. `make test-browser` installs Chromium and Playwright; without it all is skipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="make test-browser installs it")

from browsing import BROKEN, WAIT
from playwright.sync_api import Page, expect
from studio_runs import SCRIPT, evaluated, failed, log, made, training
from synthetic import PROMPTS
from waiting import until

import dgpo
from dgpo.run import checkpoint

pytestmark = pytest.mark.slow

PAGES = ("/", "/run/first", "/run/broken", "/run/first/samples", "/compare?run=first&run=second", "/run/none")
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    made(root / "first")
    evaluated(root / "first", 30)
    made(root / "second", iterations=40)
    failed(root / "broken")
    evaluated(
        made(root / SCRIPT, pictures=False, name="<img src=x onerror=alert(3)>"), 60, ["<script>alert(2)</script>"]
    )
    return root


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "runs"))


def run_item(page: Page, name: str):
    return page.locator("li.run").filter(has=page.get_by_role("link", name=name, exact=True))


def test_the_list_follows_the_folder_by_itself(serve, visit, own: Path):
    page = visit(serve(own))
    expect(page.locator("li.run")).to_have_count(4)
    expect(run_item(page, "second")).to_contain_text("40 / 60")
    expect(run_item(page, "broken")).to_contain_text("raised ValueError")
    assert "Runs" in page.title()
    with training(own / "second"):
        log(own / "second", 41)
        expect(run_item(page, "second").locator(".state")).to_have_text("running")
        expect(run_item(page, "second")).to_contain_text("41 / 60")
        expect(page.locator("li.run").first).to_contain_text("second")
        expect(page.locator("li.run").first.get_by_role("progressbar")).to_have_attribute("value", "41")
    expect(run_item(page, "second").locator(".state")).to_have_text("stopped")
    with open(own / "first" / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 60, "eval/seen/reward": 0.5, "eval/alarms": 1}\n')
    expect(run_item(page, "first").locator(".state.alarm")).to_have_text("alarm")
    made(own / "third", iterations=3)
    expect(run_item(page, "third")).to_contain_text("3 / 60")
    shutil.rmtree(own / "third")
    expect(page.locator("li.run")).to_have_count(4)


def test_the_list_is_filtered_and_runs_are_compared(serve, visit, folder: Path):
    page = visit(serve(folder))
    compare = page.locator("#compare")
    expect(compare).to_be_disabled()
    page.get_by_label("Filter").fill("SD3 stopped")
    expect(page.locator("li.run:visible")).to_have_count(1)
    page.get_by_label("Filter").fill("")
    for name in ("second", "first"):
        page.get_by_label(f"compare {name}", exact=True).check()
    compare.click()
    expect(page.get_by_role("heading", name="2 runs compared")).to_be_visible()
    expect(page.locator("main .sub").first).to_contain_text("second, which was named first")
    expect(page.locator(".grid svg").first).to_be_visible()
    # the page's policy forbids wait_for_function
    until(lambda: page.evaluate("[...document.images].slice(0, 4).every((image) => image.naturalWidth > 0)"))


def test_a_run_grows_while_somebody_looks(serve, visit, own: Path):
    with training(own / "second"):
        page = visit(serve(own), "/run/second")
        curve = page.locator(".grid svg").first  # of the training reward
        before = curve.inner_html()
        page.get_by_text("Configuration").click()
        expect(page.locator("details", has_text="Configuration")).to_have_attribute("open", "")
        (own / "second" / "console.log").write_text("12:00:00 iteration 45/60  reward 0.9\n")
        for iteration in range(41, 46):
            log(own / "second", iteration)
        expect(page.locator(".now")).to_contain_text("45 of 60 iterations")
        expect(page.locator("#console pre")).to_contain_text("iteration 45/60")
        until(lambda: curve.inner_html() != before)
        expect(page.locator("details", has_text="Configuration")).to_have_attribute("open", "")
        evaluated(own / "second", 45)
        expect(page.locator("figure", has_text="iteration 45").first).to_be_visible()
    expect(page.locator(".now .state")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Save now")).to_have_count(0)


def test_two_browsers_and_a_studio_that_is_started_anew(serve, visit, own: Path):
    studio = serve(own)
    with training(own / "second"):
        pages = [visit(studio, "/run/second"), visit(studio, "/run/second"), visit(studio, "/")]
        pages[0].get_by_role("button", name="Save now").click()
        expect(pages[0].locator("#said")).to_contain_text("Asked: write a checkpoint")
        for page in pages[:2]:
            expect(page.locator("#ask-save")).to_have_text("save: after this iteration")
        studio.stop()
        expect(pages[2].locator("#said")).to_contain_text("The studio does not answer")
        log(own / "second", 50)
        studio.restart()
        for page in pages[:2]:
            expect(page.locator(".now")).to_contain_text("50 of 60 iterations")
        expect(run_item(pages[2], "second")).to_contain_text("50 / 60")
        pages[1].get_by_role("button", name="Stop after").click()
        expect(pages[0].locator("#ask-stop")).to_have_text("stop: after this iteration")
    assert {*visit.wrong} <= {f"Failed to load resource: net::{error}" for error in BROKEN}
    visit.wrong.clear()


def where(page: Page) -> str:
    return page.locator("#where").inner_text()


def test_every_key_of_the_viewer(serve, visit, folder: Path):
    page = visit(serve(folder), "/run/first/samples")
    expect(page.locator("#where")).to_have_text("prompt 1 of 16 · iteration 60")
    press = page.keyboard.press
    press("ArrowRight")
    expect(page.locator("#prompt")).to_have_text(PROMPTS[1])
    press("ArrowUp")
    assert where(page) == "prompt 2 of 16 · iteration 30"
    press("Home")
    press("ArrowUp")
    assert where(page) == "prompt 2 of 16 · iteration 0"
    press("ArrowDown")
    press("End")
    press("ArrowLeft")
    press("ArrowLeft")
    assert where(page) == "prompt 1 of 16 · iteration 60"
    press("b")
    expect(page.locator("img.before")).to_be_visible()
    assert "over iteration 0" in where(page)
    clip = "getComputedStyle(document.querySelector('img.before')).clipPath"
    assert page.evaluate(clip) == "inset(0px 50% 0px 0px)"
    press("[")
    assert page.evaluate(clip) == "inset(0px 55% 0px 0px)"
    page.get_by_label("how much of the picture is from before").focus()
    press("ArrowRight")
    assert page.evaluate(clip) == "inset(0px 54% 0px 0px)"
    assert where(page).startswith("prompt 1 "), "arrows move the slider that has the focus"
    page.locator("#prompt").click()
    press("b")
    expect(page.locator("img.before")).to_have_count(0)
    width = page.locator("img.after").bounding_box()["width"]  # pyright: ignore
    press("z")
    assert page.locator("img.after").bounding_box()["width"] > 1.5 * width  # pyright: ignore
    press(" ")
    assert page.locator("img.after").bounding_box()["width"] == width  # pyright: ignore
    press("g")
    expect(page.locator(".line")).to_have_count(3)
    expect(page.locator(".tile")).to_have_count(3 * 8)
    page.locator(".line").nth(1).locator(".tile").nth(2).click()
    assert where(page) == "prompt 3 of 16 · iteration 30"
    press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.get_by_role("button", name="later evaluation").click()
    assert where(page) == "prompt 3 of 16 · iteration 60"
    page.reload()
    expect(page.locator("#where")).to_have_text("prompt 3 of 16 · iteration 60")


def test_a_run_of_four_hundred_pictures(serve, visit, tmp_path: Path):
    run = made(tmp_path / "runs" / "many", pictures=False)
    prompts = [f"prompt number {number}" for number in range(400)]
    for iteration in (0, 60):
        evaluated(run, iteration, prompts)
    page = visit(serve(tmp_path / "runs"), "/run/many/samples#399,0")
    expect(page.locator("#where")).to_have_text("prompt 400 of 400 · iteration 0")
    page.keyboard.press("ArrowDown")
    until(lambda: page.evaluate("document.querySelector('#stage img').naturalWidth") == 64)
    page.goto(page.url.split("/samples")[0])
    expect(page.locator(".pictures figure")).to_have_count(48)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone_and_names_its_parts(serve, visit, folder: Path, scheme: str):
    studio = serve(folder)
    page = visit(studio, viewport={"width": 360, "height": 700}, color_scheme=scheme)
    for path in PAGES:
        page.goto(studio.address + path)
        page.wait_for_load_state("networkidle" if "/run/first" not in path and "/run/broken" not in path else "load")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        unnamed = page.evaluate(
            """[...document.querySelectorAll('button, a, input, progress, svg[role=img], img')].filter((each) =>
            !each.hasAttribute('alt') && !each.ariaLabel && !each.closest('label') && !each.innerText?.trim() &&
            each.offsetParent !== null).map((each) => each.outerHTML.slice(0, 90))"""
        )
        assert unnamed == [], path
        assert page.locator("main h1, main .verdict").count() >= 1
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 19)"
        assert dark == (scheme == "dark")
    visit.wrong[:] = [said for said in visit.wrong if "404" not in said]  # /run/none


def test_a_name_and_a_prompt_that_are_script_tags_are_read_not_run(serve, visit, folder: Path):
    page = visit(serve(folder))
    run_item(page, SCRIPT).get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("<img src=x onerror=alert(3)>")
    page.get_by_role("link", name="Samples").click()
    expect(page.locator("#prompt")).to_have_text("<script>alert(2)</script>")
    page.keyboard.press("g")
    expect(page.locator(".tile")).to_have_count(1)


def test_a_link_with_a_token_lets_in_and_is_not_kept_in_the_address(serve, visit, folder: Path):
    studio = serve(folder, "a-token", open=False)
    page = visit(studio, "/?token=a-token")
    expect(page.locator("li.run")).to_have_count(4)
    assert page.url == f"{studio.address}/"


def test_the_buttons_act_on_a_training_in_another_process(serve, visit, tiny_folder: Path, tmp_path: Path):
    run, prompts = tmp_path / "runs" / "real", tmp_path / "prompts.txt"
    prompts.write_text("a red cat\na green cat\n")
    words = [
        *(
            "train",
            "tiny",
            "--model",
            str(tiny_folder),
            "--out",
            str(run),
            "--prompts",
            str(prompts),
            "--device",
            "cpu",
        ),
        *(
            "--rewards",
            "runs:colour",
            "--eval-prompts",
            f"seen={prompts}",
            "--eval-every",
            "5000",
            "--iterations",
            "5000",
        ),
        *("--num-groups", "1", "--group-size", "2", "--checkpoint-every", "5000", "--num-samples", "2"),
        *("--sampling.num-inference-steps", "2", "--resolution", "64", "--eval-images-per-prompt", "1"),
    ]
    helpers = Path(__file__).parents[1]
    paths = [Path(dgpo.__file__).parents[1], helpers / "helpers", helpers / "models"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    (tmp_path / "runs").mkdir()
    page = visit(serve(tmp_path / "runs"))
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dgpo", *words], env=environment, stdout=output, stderr=output
        )
    try:
        began = time.monotonic()
        while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < began + 90:
            page.wait_for_timeout(200)
        assert process.poll() is None, (tmp_path / "output").read_text()
        expect(run_item(page, "real").locator(".state")).to_have_text("running", timeout=60_000)
        expect(run_item(page, "real")).to_contain_text(re.compile(r"[1-9]\d* / 5000"), timeout=60_000)
        run_item(page, "real").get_by_role("link").click()
        expect(page.locator(".now")).to_contain_text("left")
        page.evaluate("window.button = document.getElementById('ask-save')")
        shown = page.locator(".now").inner_text()
        expect(page.locator(".now")).not_to_have_text(shown, use_inner_text=True)
        assert page.evaluate("window.button.isConnected"), "a click is not lost to a new number"
        page.get_by_role("button", name="Save now").click()
        expect(page.locator(".now")).to_contain_text(re.compile(r"saved: iteration-0*[1-9]"))
        page.get_by_role("button", name="Evaluate now").click()
        expect(page.locator("#console pre")).to_contain_text(re.compile(r"evaluation after iteration [1-9]"))
        page.get_by_role("button", name="Stop after this iteration").click()
        expect(page.locator(".now .state")).to_have_text("stopped", timeout=60_000)
        assert process.wait(60) == 130
        assert len(checkpoint.list_checkpoints(run)) >= 2
    finally:
        process.kill()
        process.wait()
