"""What the studio answers, and to whom."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import re
import shutil
import socket
import time
import tracemalloc
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from pages import Reader
from starlette.testclient import TestClient
from studio_runs import SCRIPT, evaluated, failed, listed, log, made, training
from synthetic import PROMPTS

from dgpo.commands.main import main
from dgpo.errors import UserError
from dgpo.report.page import render
from dgpo.run import lock, requests
from dgpo.studio import app as module
from dgpo.studio.app import app, plan
from dgpo.studio.guard import POLICY
from dgpo.studio.listing import FRESH, SLICE, Listing
from dgpo.studio.options import Options
from dgpo.studio.run import Run
from dgpo.studio.serve import link_to, listen, require_folder
from dgpo.studio.tail import read_tail

TOKEN = "the-token"
HERE = "http://127.0.0.1:8300"
ASK = {"X-Dgpo-Token": TOKEN, "Origin": HERE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    made(root / "first")
    evaluated(root / "first", 30)
    made(root / "second", iterations=40)
    failed(root / "broken")
    evaluated(made(root / SCRIPT, pictures=False), 60, ["</script><script>alert(2)</script>", "a cat"])
    (root / "no run").mkdir()
    return root


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(folder, tmp_path / "runs"))


def client(folder: Path, open: bool = True, **options: object) -> TestClient:
    return TestClient(app(folder, TOKEN, open=open), base_url=HERE, **options)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def web(folder: Path) -> TestClient:
    return client(folder)


def test_the_list_says_of_every_run_what_it_is_and_how_far(web: TestClient):
    runs = listed(web)
    assert runs.keys() == {"first", "second", "broken", SCRIPT}
    assert (runs["first"]["state"], runs["first"]["iteration"], runs["first"]["iterations"]) == ("finished", 60, 60)
    assert (runs["first"]["title"], runs["first"]["model"], runs["first"]["algorithm"]) == ("tiny", "tiny-sd3", "dgpo")
    assert runs["second"]["why"] == "after iteration 40 of 60"
    assert runs["broken"]["state"] == "failed"
    assert "raised ValueError" in str(runs["broken"]["why"])
    scores = {score["name"]: score for score in runs["first"]["scores"]}  # pyright: ignore
    assert scores["shapes_strict, seen"]["trained"]
    assert not scores["crispness, seen"]["trained"]
    assert web.get(str(runs["first"]["thumbnail"])).headers["content-type"] == "image/webp"


def test_a_run_that_a_process_holds_is_running_and_one_that_was_killed_is_not(own: Path):
    web = client(own)
    with training(own / "second"):
        assert listed(web)["second"]["state"] == "running"
    told = {"host": socket.gethostname(), "pid": 2**22 + 1, "since": "then"}
    (own / "second" / "lock").write_text(json.dumps(told))
    state = web.get("/api/run/second").json()
    assert (state["state"], state["why"]) == (
        "stopped",
        f"after iteration 40 of 60: process {2**22 + 1} on {socket.gethostname()} ended without a word",
    )


def test_only_what_has_changed_is_told_again(own: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dgpo.studio.listing.FRESH", 0.0)
    monkeypatch.setattr("dgpo.studio.listing.SLICE", 60.0)
    listing = Listing(own)
    first = listing.changes()
    assert len(first["runs"]) == 4
    assert listing.changes(first["now"])["runs"] == []
    log(own / "second", 41)
    changed = listing.changes(first["now"])
    assert [(run["name"], run["iteration"]) for run in changed["runs"]] == [("second", 41)]
    shutil.rmtree(own / "broken")
    gone = listing.changes(changed["now"])
    assert (gone["runs"], gone["gone"]) == ([], ["broken"])
    assert len(listing.changes("another-7")["runs"]) == 3, "an answer of another studio says nothing here"
    session = gone["now"].partition("-")[0]
    assert len(listing.changes(f"{session}-{'9' * 5000}")["runs"]) == 3, "no list has such a version"


def test_a_run_that_was_looked_at_before_the_list_is_in_the_list(own: Path):
    web = client(own)
    assert web.get("/run/second").status_code == 200
    assert "second" in listed(web)


def test_the_page_of_a_run_is_its_report_in_another_frame(web: TestClient, folder: Path):
    page, report = Reader(web.get("/run/first").text), Reader(render(folder / "first"))
    assert page.headings == ["tiny", *report.headings[1:]]
    assert "Improved." in page.words
    assert "60 iterations of 12 prompts × 12 pictures, 1 optimizer step; reward 1 shapes" in page.words
    pictures = [address for address in page.addresses if "/picture/" in address]
    assert len(pictures) == 2 * len(PROMPTS)
    assert web.get(unescape(pictures[0])).content == (folder / "first/samples/iteration-000000/000.png").read_bytes()
    live = web.get("/run/first/live").text
    assert live.startswith('<div id="live"')
    assert live in web.get("/run/first").text


def test_no_page_has_a_style_or_a_script_of_its_own_or_loads_anything_from_elsewhere(web: TestClient):
    for path in ("/", "/run/first", "/run/broken", "/run/first/samples", "/compare?run=first&run=second", "/run/none"):
        answer = web.get(path)
        assert answer.headers["Content-Security-Policy"] == POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert " style=" not in answer.text
        assert not re.search(r"<style|<script>|<script [^>]*>[^<]|\son\w+=", answer.text)
        loaded = [a for a in Reader(answer.text).addresses if a != "https://arxiv.org/abs/1812.06162"]
        assert all(address.startswith(("/", "#")) and not address.startswith("//") for address in loaded), loaded
        for address in loaded:
            if address.startswith("/static/"):
                assert web.get(address).status_code == 200
    for name in ("front.js", "run.js", "samples.js", "common.js", "studio.css", "look.css"):
        assert "http" not in web.get(f"/static/{name}").text.replace("http-equiv", "")


def test_names_and_prompts_are_text_never_markup(web: TestClient):
    address = listed(web)[SCRIPT]["address"]
    for path in (f"{address}", f"{address}/samples", "/run/<b>x", "/run/broken", f"/compare?run=first&run={SCRIPT}"):
        text = web.get(path).text
        assert "<script>alert" not in text
        assert "<b>a cat" not in text
        assert "<b>x" not in text
    assert "<b>a cat</b>" in Reader(web.get("/run/broken").text).words
    assert web.get(f"/api{address}/samples").json()["prompts"] == ["</script><script>alert(2)</script>", "a cat"]


@pytest.mark.parametrize(
    "path",
    [
        "/run/none",
        "/run/no run",
        "/run/%2e%2e",
        "/run/..%2f..%2fetc",
        "/run/first/picture/0/99",
        "/run/first/picture/99/0",
        f"/run/first/picture/{'9' * 5000}/1",
        "/run/first/picture/0/x",
        "/run/first/failure/..%2f..%2fconfig",
        "/run/broken/failure/none",
        "/static/..%2fapp.py",
        "/static/app.py",
        "/nothing",
    ],
)
def test_what_is_not_there_is_one_message(web: TestClient, path: str):
    answer = web.get(path)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text


def test_an_unknown_run_is_told_with_those_that_there_are(web: TestClient):
    answer = web.get("/api/run/frist")
    assert answer.status_code == 404
    assert "there is no run 'frist'" in answer.json()["error"]
    assert "Did you mean 'first'?" in answer.json()["error"]


def test_failures_are_shown_with_picture_and_prompt(web: TestClient, folder: Path):
    page = Reader(web.get("/run/broken").text)
    assert "ValueError: no" in page.words
    found = next(address for address in page.addresses if "/failure/" in address)
    assert web.get(found).content == (folder / "broken/failures/clip-00003.png").read_bytes()


def test_the_report_comes_as_a_file(web: TestClient, folder: Path):
    answer = web.get("/run/first/report")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="first-report.html"'
    assert answer.text == render(folder / "first")


def test_runs_are_compared_and_one_alone_is_not(web: TestClient):
    page = Reader(web.get("/compare?run=first&run=second").text)
    assert page.headings[0] == "2 runs compared"
    alone = web.get("/compare?run=first")
    assert alone.status_code == 400
    assert "comparing takes two different run folders or more" in alone.text


def test_the_viewer_knows_every_picture_and_its_scores(web: TestClient):
    samples = web.get("/api/run/first/samples").json()
    assert samples["prompts"] == PROMPTS
    assert [evaluation["iteration"] for evaluation in samples["evaluations"]] == [0, 30, 60]
    assert samples["evaluations"][1]["scores"]["shapes_strict"][0] == 1.0
    assert web.get(samples["evaluations"][1]["pictures"][5]).status_code == 200


def test_a_request_reaches_a_run_in_progress_only(own: Path):
    web = client(own)
    refused = web.post("/api/run/second/ask", json={"request": "save"}, headers=ASK)
    assert refused.status_code == 400
    assert refused.json()["error"] == "no process trains in second, so nobody would hear the request to save"
    with training(own / "second"):
        asked = web.post("/api/run/second/ask", json={"request": "save"}, headers=ASK)
        assert (asked.status_code, asked.json()["asked"]) == (202, "save")
        assert web.get("/api/run/second").json()["asked"] == ["save"]
        assert requests.take(own / "second") == {"save"}
        for body in (
            b"{",
            b"[]",
            b"{}",
            b'{"request": ["save"]}',
            b'{"request": {}}',
            b'{"request": "rm"}',
            b'{"request": "../save"}',
            b"[" * 10_000,
        ):
            wrong = web.post("/api/run/second/ask", content=body, headers=ASK)
            assert wrong.status_code == 400
            assert "save, evaluate, stop" in wrong.json()["error"]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Origin": HERE}, "the token is missing or wrong"),
        ({"Referer": f"{HERE}/"}, "the token is missing or wrong"),
        ({"Sec-Fetch-Site": "none"}, "the token is missing or wrong"),
        ({"Sec-Fetch-Mode": "cors"}, "the token is missing or wrong"),
        ({"Content-Type": "text/plain"}, "the token is missing or wrong"),
        ({"Authorization": "Bearer another"}, "the token is missing or wrong"),
        ({"X-Dgpo-Token": "another"}, "the token is missing or wrong"),
        ({"X-Dgpo-Token": "ümlaut".encode()}, "the token is missing or wrong"),
        ({**ASK, "Origin": "http://evil.example"}, "only a page of this studio"),
        ({**ASK, "Origin": "http://127.0.0.1:9999"}, "only a page of this studio"),
        ({**ASK, "Origin": "null"}, "only a page of this studio"),
        ({**ASK, "Sec-Fetch-Site": "cross-site"}, "only a page of this studio"),
        ({**ASK, "Sec-Fetch-Site": "same-site"}, "only a page of this studio"),
    ],
)
def test_a_change_needs_the_token_and_a_page_of_the_studio(own: Path, headers: dict[str, str], message: str):
    with training(own / "second"):
        answer = client(own).post("/api/run/second/ask", json={"request": "stop"}, headers=headers)
    assert answer.status_code == 403
    assert message in answer.json()["error"]
    assert requests.waiting(own / "second") == []


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_a_script_of_this_machine_needs_no_token_on_loopback(own: Path, kind: str):
    with training(own / "second"):
        ask = {"url": "/api/run/second/ask", "content": b'{"request": "save"}', "headers": {"Content-Type": kind}}
        assert client(own).post(**ask).status_code == 202
        assert client(own, open=False).post(**ask).status_code == 401, "from elsewhere everybody needs it"
        bearer = {**ask["headers"], "Authorization": f"Bearer {TOKEN}"}
        assert client(own, open=False).post(**{**ask, "headers": bearer}).status_code == 202
        elsewhere = {**ask["headers"], "Host": "evil.example"}
        assert client(own).post(**{**ask, "headers": elsewhere}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8300", "192.168.0.1:8300", "", "[::1"])
def test_on_loopback_a_name_of_elsewhere_is_refused(web: TestClient, host: str):
    assert web.get("/api/runs", headers={"Host": host}).status_code == 403
    assert web.get("/api/runs", headers={"Host": "localhost:8300"}).status_code == 200
    assert web.get("/api/runs", headers={"Host": "[::1]:8300"}).status_code == 200


def test_elsewhere_the_link_has_the_token_and_a_cookie_keeps_it(folder: Path):
    web = client(folder, open=False, follow_redirects=False)
    for path in ("/", "/run/first", "/static/common.js", "/api/runs"):
        assert web.get(path).status_code == 401
    assert "a token is needed: open the whole link" in web.get("/").text
    assert "the token in this link is wrong" in web.get("/?token=another").text
    led = web.get(f"/compare?run=first&token={TOKEN}&run=second")
    assert (led.status_code, led.headers["Location"]) == (303, "/compare?run=first&run=second")
    assert "HttpOnly" in led.headers["Set-Cookie"]
    assert "samesite=strict" in led.headers["Set-Cookie"].lower()
    assert web.get("/").status_code == 200
    assert web.post("/api/run/second/ask", json={"request": "save"}).status_code == 403, (
        "a cookie alone changes nothing"
    )
    script = client(folder, open=False)
    assert script.get("/api/runs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    evil = web.get(f"//evil.example/?token={TOKEN}")
    assert evil.headers.get("Location", "/").startswith("/")
    assert not evil.headers.get("Location", "/").startswith("//")


def test_a_folder_without_runs_says_so_and_one_that_is_not_there_is_refused(tmp_path: Path):
    assert client(tmp_path).get("/api/runs").json()["runs"] == []
    assert "There is no run in" in client(tmp_path).get("/").text
    with pytest.raises(UserError, match=r"there is no folder .*none\. Name the folder that holds your runs"):
        require_folder(tmp_path / "none")


def test_a_run_folder_itself_can_be_opened(folder: Path):
    assert [*listed(client(folder / "first"))] == ["first"]


def test_a_run_being_written_is_shown_as_far_as_it_is(tmp_path: Path):
    whole = made(tmp_path / "whole")
    begun = tmp_path / "begun"
    begun.mkdir()
    web = client(tmp_path)
    (begun / "environment.json").write_text("{}")
    assert web.get("/run/begun").status_code == 404, "without its config it is no run yet"
    shutil.copy(whole / "config.yaml", begun)
    time.sleep(0.6)
    assert listed(web)["begun"]["why"] == "before its first iteration was done"
    assert "Nothing logged yet" in web.get("/run/begun").text
    (begun / "metrics.jsonl").write_text('{"iteration": 1, "time/rollout": 1.0, "train/loss": 0.1}\n{"iter')
    page = web.get("/run/begun")
    assert "Where the time goes" in page.text
    assert web.get("/api/run/begun").json()["iteration"] == 1


def test_a_damaged_run_is_one_line_in_the_list_and_one_message_on_its_page(own: Path):
    (own / "first" / "config.yaml").write_text("name: [")
    (own / "second" / "metrics.jsonl").write_text('no row\n{"iteration": 1}\n')
    web = client(own)
    runs = listed(web)
    assert runs["first"]["state"] == "unreadable"
    assert "config.yaml cannot be read" in str(runs["first"]["why"])
    assert "config.yaml cannot be read" in web.get("/run/first").text
    assert "is not a row of metrics" in web.get("/run/second").text
    assert runs["broken"]["state"] == "failed", "the others are as before"


DAMAGE = {
    "a log of 100,000 brackets": ("metrics.jsonl", "[" * 100_000 + "\n"),
    "a time that is a word": ("metrics.jsonl", '{"iteration": 1, "time/elapsed": "x"}\n'),
    "minutes that are a word": ("config.yaml", "max_minutes: abc\n"),
    "a weight that is a word": ("config.yaml", "rewards: {a: b}\n"),
    "iterations that are a list": ("config.yaml", "iterations: [1]\n"),
    "iterations that are a day": ("config.yaml", "iterations: 2020-01-01\n"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_a_file_holds_the_list_and_the_page_are_there(own: Path, damage: str):
    name, text = DAMAGE[damage]
    plain = "iterations: 60\nmax_minutes: 3\nnum_groups: 1\ngroup_size: 1\nrewards: {a: 1}\n"
    (own / "first" / "config.yaml").write_text(plain if name == "metrics.jsonl" else _with(plain, text))
    if name == "metrics.jsonl":
        (own / "first" / name).write_text(text)
    web = client(own)
    runs = listed(web)
    assert runs.keys() == {"first", "second", "broken", SCRIPT}
    assert runs["second"]["state"] == "stopped", "the others are as before"
    page = web.get("/run/first")
    assert page.status_code == 200
    assert '<span class="state unreadable">' in page.text
    assert re.search("does not hold what dgpo writes|is not a row of metrics", page.text)
    for address in ("/run/first/live", "/api/run/first"):
        assert web.get(address).status_code == 200
    for address in (
        "/run/first/report",
        "/run/first/samples",
        "/api/run/first/samples",
        "/compare?run=first&run=second",
    ):
        assert web.get(address).status_code in (200, 400)


def _with(config: str, line: str) -> str:
    """A config with one line in place of the one of that name."""
    name = line.partition(":")[0]
    return "".join(line if old.startswith(f"{name}:") else old for old in config.splitlines(keepends=True))


def test_a_damaged_log_makes_its_run_unreadable_in_the_list(own: Path):
    (own / "first" / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    run = listed(client(own))["first"]
    assert (run["state"], "RecursionError" in str(run["why"])) == ("unreadable", True)


@pytest.mark.parametrize("note", ["[1]", "{", "[" * 100_000])
def test_a_failure_with_a_damaged_note_is_shown_without_it(own: Path, note: str):
    (own / "broken" / "failures" / "clip-00003.json").write_text(note)
    page = client(own).get("/run/broken")
    assert "ValueError: no" in Reader(page.text).words
    assert "/run/broken/failure/clip-00003" in page.text


def test_links_out_of_the_run_folder_are_not_followed(own: Path, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text('{"prompt": "a secret"}')
    shutil.copy(own / "first/samples/iteration-000000/001.png", tmp_path / "secret.png")
    failures, pictures = own / "broken/failures", own / "first/samples/iteration-000060"
    for link in (failures / "a.png", failures / "a.json", failures / "clip-00003.txt"):
        link.unlink(missing_ok=True)
        link.symlink_to(secret)
    (pictures / "000.png").unlink()
    (pictures / "000.png").symlink_to(tmp_path / "secret.png")
    (pictures / "001.png").unlink()
    (pictures / "001.png").symlink_to(pictures / "002.png")
    web = client(own)
    assert web.get("/run/broken/failure/a").status_code == 404
    assert "a secret" not in web.get("/run/broken").text
    assert "/failure/clip-00003" in web.get("/run/broken").text
    assert web.get("/run/first/picture/60/0").status_code == 404
    assert web.get("/run/first/thumbnail").status_code == 404
    assert web.get("/run/first/picture/60/1").content == (pictures / "002.png").read_bytes(), "a link within the run"
    assert web.get("/run/first").status_code == 200
    secret_text = base64.b64encode((tmp_path / "secret.png").read_bytes()).decode()
    report = web.get("/run/first/report")
    assert (report.status_code, report.text.count(secret_text)) == (200, 1), "the picture at the start is the run's own"


def test_a_run_folder_that_is_a_link_is_shown(own: Path):
    shutil.move(own / "first", own.parent / "elsewhere")
    (own / "first").symlink_to(own.parent / "elsewhere")
    assert client(own).get("/run/first/picture/0/0").status_code == 200


def test_a_run_of_another_version_says_so(own: Path):
    (own / "first" / "environment.json").write_text('{"dgpo": "0.0.1"}')
    (own / "first" / "config.yaml").write_text("name: old\nan_unknown_field: 3\niterations: 100\n")
    page = client(own).get("/run/first").text
    assert "written by dgpo 0.0.1; this is" in page
    with training(own / "first"):
        assert client(own).get("/api/run/first").json()["left"] == ""


def test_the_plan_is_told_where_the_config_has_one():
    config = {"iterations": 9, "max_minutes": 3.5, "num_groups": 2, "group_size": 4, "rewards": {"a": 0.5, "b": 1.0}}
    told = "9 iterations or 3.5 minutes of 2 prompts × 4 pictures, 3 optimizer steps; reward 0.5 a + 1 b"
    assert plan({**config, "updates_per_rollout": 3}) == told
    assert plan({}) == ""


def test_the_end_of_a_log_is_read_from_behind(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"iteration": i, "train/loss": 0.1, "text": "ü" * 500} for i in range(200)]
    rows[100]["eval/seen/reward"] = 0.5
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + '{"iteration": 200, "tr')
    tail = read_tail(path)
    assert [row["iteration"] for row in tail.trained] == [*range(190, 200)]
    assert tail.evaluated == rows[100]
    assert tail.iteration == 199
    assert read_tail(tmp_path / "none").iteration is None
    path.write_text("not JSON\n[]\n7")
    assert read_tail(path).iteration is None


def test_a_watcher_hears_once_of_every_change(own: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(module, "QUIET", 0.05)
    run = Listing(own).run("second")

    async def hear() -> list[str]:
        events = module._events(run, asyncio.Event())
        heard = [await anext(events), await anext(events)]
        log(own / "second", 41)
        heard.append(await anext(events))
        with lock.held(own / "second"):
            heard.append(await anext(events))
        heard.append(await anext(events))
        await events.aclose()  # pyright: ignore
        return heard

    first, quiet, logged, held, ended = asyncio.run(hear())
    assert quiet == ": nothing new\n\n"
    assert len({first, logged, held, ended}) >= 4
    assert all(event.startswith("data: ") for event in (first, logged, held, ended))


def test_every_answer_reads_at_least_one_more_run_however_slow_the_disk(own: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dgpo.studio.listing.SLICE", 0.0)
    web = client(own)
    with training(own / "second"):  # it is described anew at every call
        answer, unread = {"now": ""}, []
        for _ in range(4):
            answer = web.get(f"/api/runs?since={answer['now']}").json()
            unread.append(answer["unread"])
    assert unread == [3, 2, 1, 0]


def test_many_runs_are_listed_in_slices_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A clock that goes on by a tenth of a second for each run read, and stands still else."""
    source = made(tmp_path / "source")
    root = tmp_path / "runs"
    for number in range(40):
        run = root / f"run-{number:02d}"
        run.mkdir(parents=True)
        for name in ("config.yaml", "environment.json", "metrics.jsonl"):
            os.link(source / name, run / name)
    read: list[str] = []
    describe = Run.describe

    def counted(run: Run):
        read.append(run.folder.name)
        return describe(run)

    monkeypatch.setattr(Run, "describe", counted)
    monkeypatch.setattr("dgpo.studio.listing.time.monotonic", lambda: 0.1 * len(read))
    listing = Listing(root)
    answer = listing.changes()
    sizes = [len(answer["runs"])]
    while answer["unread"]:
        answer = listing.changes(answer["now"])
        sizes.append(len(answer["runs"]))
    assert sizes[0] == round(SLICE / 0.1) + 1, "whoever asks gets what is read within a slice"
    assert sum(sizes) == len(read) == len({*read}) == 40
    listing._looked = -FRESH
    assert listing.changes(answer["now"])["runs"] == []
    assert len(read) == 40, "runs that have not changed cost a look at their files"


@pytest.mark.slow
def test_memory_stays_flat_while_pages_are_asked_for_again_and_again(own: Path):
    web = client(own)

    def ask(times: int) -> int:
        for _ in range(times):
            for path in ("/api/runs", "/run/first/live", "/api/run/first/samples", "/run/broken", "/run/none"):
                web.get(path)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = ask(6)
        assert ask(12) - before < 200_000, "bytes, after sixty requests"
    finally:
        tracemalloc.stop()


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_port_in_use_leads_to_the_next_one_and_names_the_flag(taken: int, capsys: pytest.CaptureFixture[str]):
    with listen(Options(port=taken)) as listener:
        port = listener.getsockname()[1]
        assert taken < port <= taken + 50
        assert capsys.readouterr().out == f"Port {taken} is in use, so this is {port}; --port takes another one.\n"
        assert link_to(listener, "127.0.0.1", TOKEN) == f"http://127.0.0.1:{port}/"
        assert link_to(listener, "0.0.0.0", TOKEN) == f"http://{socket.gethostname()}:{port}/?token={TOKEN}"


def test_bad_options_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        ([], "there is no folder runs. Name the folder"),
        (["none"], "there is no folder none"),
        ([".", "--port", "70000"], "port=70000 cannot work: it must be from 0 to 65535"),
        ([".", "--prot", "1"], "prot"),
        ([".", "--host", "300.300.300.300"], "cannot listen on 300.300.300.300"),
        ([".", "other"], "'other' has no place here"),
    ):
        assert main(["studio", *words]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
