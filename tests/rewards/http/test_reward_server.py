"""The server of rewards: what it refuses, with which code, and how it puts requests together."""

from __future__ import annotations

import io
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import msgspec
import numpy as np
import pytest
import torch
from fake_http import serving
from PIL import Image
from waiting import until

from dgpo import __version__
from dgpo.commands import main as cli
from dgpo.errors import UserError
from dgpo.rewards.base import RewardAway, requires
from dgpo.rewards.http import wire
from dgpo.rewards.http.client import Remote
from dgpo.rewards.http.options import Serving
from dgpo.rewards.rows import checks_rows

pytestmark = pytest.mark.slow

IMAGE = wire.Raw((1, 3, 2, 2), np.full(12, 0.5, "<f4").tobytes())
RIGHT = {"protocol": 1, "id": "x", "images": IMAGE, "prompts": ["a"], "metadata": ["{}"]}


def png(mode: str = "RGB", size: tuple[int, int] = (2, 2)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def post(url: str, content: bytes | dict[str, object], **headers: str | bytes) -> httpx2.Response:
    body = content if isinstance(content, bytes) else msgspec.msgpack.encode(content)
    return httpx2.post(f"{url}/score", content=body, headers=headers)


def mean(images, prompts, metadata):
    return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def url():
    with serving(mean, max_images=3, max_mb=0.01, max_pixels=100) as address:
        yield address


def test_a_request_in_plain_msgpack_is_answered_in_plain_msgpack(url):
    images = {"encoding": "raw", "shape": [1, 3, 2, 2], "data": (np.arange(12) / 16).astype("<f4").tobytes()}
    plain = {"protocol": 1, "id": "me", "images": images, "prompts": ["a"], "metadata": ['{"k": [1, null]}']}
    answer = msgspec.msgpack.decode(post(url, plain).content)
    assert answer == {"protocol": 1, "id": "me", "reward": "mine", "scores": [{"name": "mine", "values": [5.5 / 16]}]}


def test_pngs_are_read(url):
    files = {"encoding": "png", "files": [png(), png()]}
    answer = msgspec.msgpack.decode(
        post(url, {**RIGHT, "images": files, "prompts": ["a", "b"], "metadata": ["{}"] * 2}).content
    )
    assert answer["scores"] == [{"name": "mine", "values": [0.0, 0.0]}]


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (b"", 400, "no request of protocol 1"),
        (b"\x81\xa1a", 400, "no request of protocol 1"),
        (b"0" * 10_001, 413, "may have 10000 bytes"),
        ({**RIGHT, "protocol": 2}, 400, "$.protocol"),
        ({**RIGHT, "metadata": ["{"]}, 400, "no request"),
        ({**RIGHT, "metadata": ["[]"]}, 400, "must be JSON objects"),
        ({**RIGHT, "prompts": ["a", "b"]}, 400, "1 images, 2 prompts, 1 metadata"),
        ({**RIGHT, "prompts": ["a"] * 4}, 413, "4 images in a request, and 3 are allowed"),
        ({**RIGHT, "images": {"encoding": "pickle", "data": b""}}, 400, "pickle"),
        ({**RIGHT, "images": wire.Raw((1, 3, 2, 3), IMAGE.data)}, 422, "72 bytes of fp32; got 48"),
        ({**RIGHT, "images": {"encoding": "raw", "data": IMAGE.data, "shape": [1, 4, 2, 2]}}, 400, "shape"),
        ({**RIGHT, "images": {"encoding": "raw", "data": IMAGE.data, "shape": [-1, 3, 2, -2]}}, 400, ">= 1"),
        ({**RIGHT, "images": wire.Raw((1, 3, 1, 101), b"")}, 413, "101x1 pixels has more than 100"),
        ({**RIGHT, "images": wire.Raw((1, 3, 1, 1), np.full(3, 255, "<f4").tobytes())}, 422, "finite and in [0, 1]"),
        ({**RIGHT, "images": wire.Png([])}, 422, "at least one"),
        ({**RIGHT, "images": wire.Png([b"GIF89a"])}, 422, "no PNG that can be read"),
        ({**RIGHT, "images": wire.Png([png()[:-25]])}, 422, "no PNG that can be read"),
        ({**RIGHT, "images": wire.Png([png("RGBA")])}, 422, "mode RGBA"),
        ({**RIGHT, "images": wire.Png([png(size=(11, 10))])}, 413, "11x10 pixels has more than 100"),
        ({**RIGHT, "images": wire.Png([png(), png(size=(1, 1))]), "prompts": ["a"] * 2}, 422, "all of one size"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(url, request_, code, message):
    answer = post(url, request_)
    assert (answer.status_code, answer.headers["content-type"]) == (code, "application/json")
    assert message in answer.json()["error"]


def test_a_body_without_a_length_is_not_read_to_its_end(url):
    answer = httpx2.post(f"{url}/score", content=(b"0" * 6_000 for _ in range(3)))
    assert answer.status_code == 413


def test_other_paths_and_methods(url):
    assert httpx2.get(f"{url}/health").json() == {"status": "ok", "waiting": 0}
    assert httpx2.get(f"{url}/nothing").status_code == 404
    assert httpx2.get(f"{url}/score").json() == {"error": "Method Not Allowed", "index": None}


def test_a_token_is_asked_for_before_anything_is_read():
    with serving(mean, token="right", max_mb=0.001) as url:
        assert post(url, b"0" * 2_000).status_code == 401
        assert post(url, RIGHT, Authorization="Bearer wröng".encode()).status_code == 401
        assert post(url, RIGHT, Authorization="Bearer right").status_code == 200
        assert httpx2.get(f"{url}/version").status_code == 401
        assert httpx2.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize(
    ("rows", "code", "message"),
    [
        ({"protocol": 1, "prompts": ["a"], "metadata": ["{}"]}, 200, None),
        ({"protocol": 2, "prompts": ["a"], "metadata": ["{}"]}, 400, "no request of protocol 1"),
        ({"protocol": 1, "prompts": ["a"], "metadata": []}, 400, "1 prompts, 0 metadata; there must be as many"),
        ({"protocol": 1, "prompts": ["a"], "metadata": ["[]"]}, 400, "metadata must be JSON objects"),
        ({"protocol": 1, "prompts": ["a"], "metadata": ["{"]}, 400, "no request of protocol 1"),
        ({"protocol": 1, "prompts": ["a" * 20_000], "metadata": ["{}"]}, 413, "a request may have 10000 bytes"),
    ],
)
def test_rows_to_check_are_a_request_or_refused(url, rows, code, message):
    reply = httpx2.post(f"{url}/check", content=msgspec.msgpack.encode(rows))
    assert reply.status_code == code
    if message is None:
        assert msgspec.msgpack.decode(reply.content, type=wire.Checked) == wire.Checked(1, {}, {})
    else:
        assert message in msgspec.json.decode(reply.content, type=wire.Problem).error


def test_rows_are_not_checked_without_the_token():
    with serving(mean, token="right") as url:
        assert httpx2.post(f"{url}/check", content=b"").status_code == 401


ROWS = {"protocol": 1, "prompts": ["a"], "metadata": ["{}"]}


def test_rows_that_find_no_memory_are_asked_again_later():
    with serving(mean, max_mb=0.01, max_pixels=4, max_total_pixels=4, max_memory_mb=0.011) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + b"0" * 8_000)
            asked, replies = msgspec.msgpack.encode({**ROWS, "prompts": ["a" * 5_000]}), []
            until(lambda: replies.append(httpx2.post(f"{url}/check", content=asked)) or replies[-1].status_code == 503)
    assert replies[-1].headers["Retry-After"] == "1"
    assert "bytes" in replies[-1].json()["error"]


def test_a_doubt_that_holds_half_of_a_character_is_told():
    reward = checks_rows(lambda prompt, metadata: f"odd {metadata['name']}")(lambda *_: [])
    rows = {**ROWS, "metadata": ['{"name": "\\ud800"}']}
    with serving(reward) as url:
        reply = httpx2.post(f"{url}/check", content=msgspec.msgpack.encode(rows))
    assert msgspec.msgpack.decode(reply.content, type=wire.Checked).doubts == {0: "odd \\ud800"}


def test_a_reward_is_not_asked_about_rows_while_it_scores():
    """It may not bear two at once: the tokenizers of the CLIP rewards do not."""
    busy, both = threading.Event(), []

    def asked(*_):
        both.append(busy.is_set())
        busy.set()
        time.sleep(0.2)
        busy.clear()

    def reward(images, prompts, metadata):
        asked()
        return images.mean((1, 2, 3))

    with serving(checks_rows(asked)(reward)) as url, ThreadPoolExecutor(2) as pool:
        scored = pool.submit(post, url, RIGHT)
        checked = pool.submit(httpx2.post, f"{url}/check", content=msgspec.msgpack.encode(ROWS))
        assert (scored.result().status_code, checked.result().status_code) == (200, 200)
    assert both == [False, False]


def test_the_version_tells_what_a_client_needs():
    with serving(requires("include")(mean), "some:reward", max_images=7, max_mb=2) as url:
        told = msgspec.json.decode(httpx2.get(f"{url}/version").content, type=wire.Version)
    assert told == wire.Version(1, __version__, "some:reward", ["include"], 7, 2_000_000, 2**25)


class Gate:
    """A reward whose first call waits, so that requests gather; it fails on the prompt "bad"."""

    def __init__(self) -> None:
        self.entered, self.open, self.calls = threading.Event(), threading.Event(), []

    def __call__(self, images, prompts, metadata):
        self.calls.append((tuple(images.shape), list(prompts)))
        self.entered.set()
        assert self.open.wait(20)
        if "bad" in prompts:
            raise ValueError("no picture")
        return [float(prompt) for prompt in prompts]


def waiting(url: str, count: int) -> None:
    """Returns when so many images wait or are being scored."""
    until(lambda: httpx2.get(f"{url}/health").json() == {"status": "ok", "waiting": count})


def test_requests_that_gather_are_scored_in_one_call_and_only_the_bad_one_fails():
    gate, tall = Gate(), wire.Raw((1, 3, 2, 1), IMAGE.data[:24])
    asked = [("1", IMAGE), ("2", IMAGE), ("bad", IMAGE), ("4", tall), ("5", IMAGE)]
    with serving(gate, max_waiting=6, max_images=4) as url, ThreadPoolExecutor(8) as threads:
        first = threads.submit(post, url, {**RIGHT, "prompts": ["0"]})
        assert gate.entered.wait(20)
        rest = [threads.submit(post, url, {**RIGHT, "prompts": [p], "images": image}) for p, image in asked]
        waiting(url, 6)
        full = post(url, RIGHT)
        gate.open.set()
        answers = [future.result() for future in [first, *rest]]
    assert (full.status_code, full.headers["Retry-After"]) == (503, "1")
    for answer, prompt in zip(answers, ["0", "1", "2", "bad", "4", "5"]):
        if prompt == "bad":
            assert answer.status_code == 500
            assert answer.json() == {"error": "the reward 'mine' raised ValueError: no picture", "index": 0}
        else:
            (scores,) = msgspec.msgpack.decode(answer.content)["scores"]
            assert scores["values"] == [float(prompt)]
    most = max(gate.calls, key=lambda call: len(call[1]))
    assert 2 <= len(most[1]) <= 4
    assert all(shape[0] == len(prompts) for shape, prompts in gate.calls)


def test_a_client_that_has_gone_is_not_scored():
    gate = Gate()
    with serving(gate, max_waiting=2) as url, ThreadPoolExecutor(2) as threads:
        first = threads.submit(post, url, {**RIGHT, "prompts": ["0"]})
        assert gate.entered.wait(20)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/score", content=msgspec.msgpack.encode({**RIGHT, "prompts": ["1"]}), timeout=0.5)
        waiting(url, 1)
        second = threads.submit(post, url, {**RIGHT, "prompts": ["2"]})
        waiting(url, 2)
        gate.open.set()
        assert {first.result().status_code, second.result().status_code} == {200}
    assert ["1"] not in [prompts for _, prompts in gate.calls]


def test_nothing_of_an_image_is_lost_on_the_wire():
    images = torch.rand(2, 3, 5, 7)
    assert torch.equal(wire.unpack_images(wire.pack_images(images, "raw"), 35), images)
    assert torch.equal(wire.unpack_images(wire.pack_images(images, "png"), 35), images.mul(255).round() / 255)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "", "my-machine", "localhost.example.org"])
def test_other_machines_are_let_in_with_a_token_or_on_purpose_only(host, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"no token is asked of them. Give --token-env VARIABLE.*or --no-token"):
        Serving(host=host)
    Serving(host=host, no_token=True)
    Serving(host=host, token_env="SOME")
    assert cli.main(["serve-reward", "redness", "--host", host, "--port", "0"]) == 2
    assert "lets others than this machine in" in capsys.readouterr().err
    with pytest.raises(UserError, match="asks for a token and no_token for none"):
        Serving(host=host, token_env="SOME", no_token=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_this_machine_needs_no_token(host):
    assert Serving(host=host).token_env is None


@pytest.mark.parametrize("token", ["s3cret", "x" * 300])
def test_a_token_is_compared_in_constant_time(token, monkeypatch):
    """By `secrets.compare_digest`, whatever is shown; a plain comparison ends at the first difference."""
    compared = []

    def compare(shown: bytes, right: bytes) -> bool:
        compared.append((shown, right))
        return shown == right

    with serving(lambda images, *_: images.mean((1, 2, 3)), token=token) as url:
        monkeypatch.setattr("dgpo.rewards.http.server.secrets.compare_digest", compare)
        shown = ["", token[:-1], token + "x", f"Bearer {token}", f"Bearer {token[:-1]}"]
        codes = [post(url, RIGHT, Authorization=header).status_code for header in shown]
        assert post(url, RIGHT).status_code == 401
    assert codes == [401, 401, 401, 200, 401]
    assert [right for _, right in compared] == [token.encode()] * 6


@pytest.mark.parametrize(
    ("images", "count", "message"),
    [
        (wire.Png([png(size=(10, 5))] * 3), 3, "a request of 3 images of 10x5 pixels has more than 120"),
        (wire.Raw((3, 3, 5, 10), b""), 3, "a request of 3 images of 10x5 pixels has more than 120"),
        (wire.Png([png()] * 4), 1, "4 images in a request, and 3 are allowed"),
        (wire.Raw((10**12, 3, 1, 1), b""), 1, "1000000000000 images in a request, and 3 are allowed"),
        (wire.Raw((1, 3, 2**62, 2**62), b""), 1, "pixels has more than 100"),
    ],
)
def test_pictures_are_counted_and_measured_before_any_is_read(images, count, message, monkeypatch):
    monkeypatch.setattr(wire, "_read_png", None)
    with serving(mean, max_images=3, max_pixels=100, max_total_pixels=120) as url:
        texts = {"prompts": ["a"] * count, "metadata": ["{}"] * count}
        answer = post(url, {**RIGHT, "images": images, **texts})
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/json")
        assert message in answer.json()["error"]


def test_more_than_fits_into_memory_is_to_come_back_later():
    gate = Gate()
    body = {**RIGHT, "images": wire.Png([png(size=(256, 256))]), "prompts": ["1"]}
    with (
        serving(gate, max_mb=0.01, max_total_pixels=2**16, max_memory_mb=0.8) as url,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(post, url, body)
        assert gate.entered.wait(20)
        full = post(url, body)
        gate.open.set()
        assert first.result().status_code == 200
        assert post(url, body).status_code == 200, "all is given back"
    assert (full.status_code, full.headers["Retry-After"]) == (503, "1")
    assert "hold 786," in full.json()["error"]


def test_one_call_has_no_more_pixels_than_one_request_may_have():
    gate = Gate()
    with serving(gate, max_total_pixels=8, max_images=100) as url, ThreadPoolExecutor(6) as threads:
        first = threads.submit(post, url, {**RIGHT, "prompts": ["0"]})
        assert gate.entered.wait(20)
        rest = [threads.submit(post, url, {**RIGHT, "prompts": ["1"]}) for _ in range(5)]
        waiting(url, 6)
        gate.open.set()
        assert {answer.result().status_code for answer in [first, *rest]} == {200}
    assert max(len(prompts) for _, prompts in gate.calls) == 2, "of 4 pixels each"


def test_a_client_sends_no_more_pixels_than_the_server_takes():
    sizes = []
    with serving(lambda images, *_: sizes.append(len(images)) or [0.0] * len(images), max_total_pixels=8) as url:
        Remote(url, encoding="png")(torch.rand(5, 3, 2, 2), ["a"] * 5, [{}] * 5)
    assert sum(sizes) == 5
    assert max(sizes) == 2


def test_a_reward_whose_own_server_is_away_is_a_gateway_and_asked_once():
    calls = []

    def away(images, prompts, metadata):
        calls.append(len(prompts))
        raise RewardAway("asked a server that is away")

    with serving(away) as url:
        answer = post(url, {**RIGHT, "images": wire.Png([png()] * 8), "prompts": ["a"] * 8, "metadata": ["{}"] * 8})
    assert (answer.status_code, answer.json()["error"]) == (502, "the reward 'mine' asked a server that is away")
    assert calls == [8]


def test_bad_options_are_one_message(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve-reward", "redness", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    assert cli.main(["serve-reward"]) == 2
    assert cli.main(["serve-reward", "rednes"]) == 2
    assert "Did you mean 'redness'" in capsys.readouterr().err
    assert cli.main(["serve-reward", "pixel_diversity"]) == 2
    assert "which belong together" in capsys.readouterr().err
    assert cli.main(["serve-reward", "redness", "--token-env", "NOT_SET_ANYWHERE"]) == 2
    assert cli.main(["serve-reward", "--help"]) == 0
    for bad in (
        {"port": 70_000},
        {"max_mb": 0},
        {"max_images": 0},
        {"max_total_pixels": 0},
        {"max_pixels": 2 * 10**8},
        {"max_memory_mb": 500},
    ):
        with pytest.raises(UserError, match=r"cannot work|must be"):
            Serving(**bad)
