"""A server that is away is one fact, not one for every image: it costs its wait once, and is told while it lasts.

Before this was so, `drop` with 64 images and a dead server sent 1,143 requests in 127 calls and waited 7,842 seconds,
in silence; now it sends 9 in one call and waits 62.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from threading import Event

import msgspec
import pytest
import torch
from fake_http import Asked, Reply, answering, serving

from dgpo.errors import UserError
from dgpo.rewards.base import Batch, Failed, RewardAway, RewardError, attempt, call_reward
from dgpo.rewards.builtin.vlm_judge import VLMJudge
from dgpo.rewards.combine import RewardSet
from dgpo.rewards.failures import answer, parse_policy
from dgpo.rewards.http import calls, wire
from dgpo.rewards.http.client import Remote

pytestmark = pytest.mark.slow

COUNT = 64
BATCH = Batch(torch.rand(COUNT, 3, 4, 4), [f"prompt {i}" for i in range(COUNT)], [{"n": i} for i in range(COUNT)])
VERSION = msgspec.json.encode(wire.Version(wire.PROTOCOL, "0", "mine", [], 100, 10**6))


@pytest.fixture
def waited(monkeypatch) -> list[float]:
    """The seconds of every wait of the client, none of which is waited."""
    seconds: list[float] = []

    async def sleep(pause: float) -> None:
        seconds.append(pause)

    monkeypatch.setattr(calls, "sleep", sleep)
    return seconds


class Counted:
    """/version is in order; /score is `reply` of the number of the request, from 1."""

    def __init__(self, reply: Callable[[int, wire.Request], Reply]) -> None:
        self.reply, self.number = reply, itertools.count(1)
        self.requests = 0

    def __call__(self, asked: Asked) -> Reply:
        if asked.path == "/version":
            return Reply(VERSION)
        self.requests = next(self.number)
        return self.reply(self.requests, msgspec.msgpack.decode(asked.body, type=wire.Request))


def right(request: wire.Request) -> Reply:
    scores = [wire.Scores("mine", [float(len(request.prompts))] * len(request.prompts))]
    return Reply(msgspec.msgpack.encode(wire.Answer(1, request.id, "mine", scores)))


def ask(reward, policy="drop", batch=BATCH):
    return answer("mine", reward, batch, parse_policy("mine", policy), None, Event())


@pytest.mark.parametrize("code", [502, 503, 504])
def test_drop_leaves_out_a_batch_whose_server_is_away_after_one_wait(code, waited, capsys):
    server = Counted(lambda *_: Reply(b"", code))
    with answering(server) as url:
        remote = Remote(url, chunk=COUNT)
        found = ask(remote)
        assert found.scores["mine"].isnan().all()
        assert (found.dropped, server.requests, len(waited)) == (64, 9, 8)
        assert 61.75 <= sum(waited) <= 63.75
        assert ask(remote).dropped == 64
        assert (server.requests, len(waited)) == (10, 8), "known to be away, so asked once"
    said = capsys.readouterr().err.splitlines()
    for number, (line, seconds) in enumerate(zip(said, waited), 2):
        assert line == f"  mine: {url}/score answered {code}: ; try {number} of 9 in {seconds:.2g} s"
    assert "could not score images 0 to 63" in said[8]
    assert "64 image(s) are left out" in said[8]
    assert len(said) == 10, "a line for each try and for each batch"


def test_a_rollout_whose_server_is_away_waits_once(waited):
    server = Counted(lambda *_: Reply(b"", 503))
    with answering(server) as url:
        remote = Remote(url, chunk=2, retries=3)
        rewards = RewardSet({"mine": 1.0}, {"mine": remote}, failures={"mine": "drop"})
        with rewards.scoring(BATCH.prompts, BATCH.metadata, torch.arange(COUNT)) as scoring:
            for part in BATCH.images.split(8):
                scoring.add(part)
            assert scoring.result().failures["dropped/mine"] == COUNT
    in_flight = 4
    assert server.requests <= in_flight * 4 + in_flight * 7, "chunks at a time, with retries once and then without"


@pytest.mark.parametrize("gone", ["stopped", "silent"])
def test_a_server_that_is_gone_or_hangs_is_one_fact_too(gone, waited, capsys):
    release = Event()

    def hang(number: int, request: wire.Request) -> Reply:
        release.wait(20)
        return Reply(b"")

    with answering(Counted(hang)) as url:
        remote = Remote(url, timeout=0.2, retries=2, chunk=COUNT)
        if gone == "silent":
            found = ask(remote)
            release.set()
    if gone == "stopped":
        found = ask(remote)
    assert found.dropped == COUNT
    problem = "cannot be reached" if gone == "stopped" else "did not answer within 0.2 seconds"
    said = capsys.readouterr().err
    assert said.count(problem) == 3
    assert "try 3 of 3" in said


def test_a_server_that_comes_back_is_told_and_has_all_its_retries_again(waited, capsys):
    away = {1, 2, 3, 5}  # the third ends the first call, with one wait; the fifth is waited for again
    server = Counted(lambda number, request: Reply(b"", 503) if number in away else right(request))
    with answering(server) as url:
        remote = Remote(url, retries=2, chunk=COUNT)
        assert ask(remote).dropped == COUNT
        assert ask(remote).dropped == 0
        assert ask(remote).dropped == 0
    said = capsys.readouterr().err
    assert said.count("mine: is answered again, after") == 2
    assert (len(waited), server.requests) == (3, 6)


def test_images_that_a_server_fails_on_are_still_looked_for(waited):
    """An answer to others meanwhile, or a reward that reports the failure: the images are to blame."""

    def refuses(images, prompts, metadata):
        if any(row["n"] in (2, 50) for row in metadata):
            raise ValueError("no picture")
        return [1.0] * len(prompts)

    with serving(refuses) as url:
        assert ask(Remote(url)).scores["mine"].isnan().nonzero().flatten().tolist() == [2, 50]

    def crashes(number: int, request: wire.Request) -> Reply:
        return Reply(b"", 502) if "prompt 7" in request.prompts else right(request)

    with answering(Counted(crashes)) as url:
        remote = Remote(url, chunk=4, retries=3, in_flight=64)
        lost = ask(remote).scores["mine"].isnan().nonzero().flatten().tolist()
        assert 7 in lost
        assert {*lost} <= {4, 5, 6, 7}, "its chunk at most, which was asked about alone"


@pytest.mark.parametrize(
    "reply", [Reply(b"<html>", 500), Reply(b"", 404), Reply(msgspec.json.encode(wire.Problem("the token")), 401)]
)
def test_an_answer_that_is_not_about_the_images_is_not_looked_for_in_them(reply, waited):
    server = Counted(lambda *_: reply)
    with answering(server) as url:
        remote = Remote(url, chunk=COUNT)
        assert ask(remote).dropped == COUNT
        assert server.requests == 1
        with pytest.raises(RewardAway, match=rf"got {reply.code} .*It is not about the images"):
            call_reward("mine", remote, *BATCH[:3])


def test_a_judge_that_is_away_is_one_fact_too(waited, capsys):
    requests = []
    with answering(lambda asked: requests.append(asked) or Reply(b"", 500)) as url:
        judge = VLMJudge(url, "m", concurrency=4, retries=2)
        assert ask(judge).dropped == COUNT
        assert len(requests) <= 4 * 3 + 4
        before = len(requests)
        assert ask(judge).dropped == COUNT
        assert len(requests) <= before + 8, "those on their way when the first fails"
    assert capsys.readouterr().err.count("try ") == 2, "a line a try, not one an image"
    no_model = Reply(b"no such model", 404)
    requests.clear()
    with answering(lambda asked: requests.append(asked) or no_model) as url:
        assert ask(VLMJudge(url, "m", concurrency=4)).dropped == COUNT
    assert len(requests) <= 8


def test_retries_of_a_policy_are_told(capsys):
    def away(images, prompts, metadata):
        raise RewardAway("asked a server that is away")

    assert ask(away, "retry(2, 0.01)+drop").retries == 2
    assert capsys.readouterr().err.splitlines() == [
        "  the reward 'mine' asked a server that is away; call 2 of 3 in 0.01 s",
        "  the reward 'mine' asked a server that is away; call 3 of 3 in 0.02 s",
        "  the reward 'mine' asked a server that is away; 64 image(s) are left out",
    ]
    with pytest.raises(RewardAway, match="asked a server that is away"):
        ask(away, "retry(1, 0)")


@pytest.mark.parametrize("index", [64, -1, 10**9, None, "3", 1.5])
def test_an_image_that_there_is_not_is_told_and_not_looked_up(index):
    def wrong(images, prompts, metadata):
        raise RewardError("is broken", index)

    with pytest.raises(RewardError, match=r"'mine' is broken \(on image .*given 64, from 0\)\. Image \d+ of 64"):
        call_reward("mine", wrong, *BATCH[:3])


class Odd:
    def __array__(self, *_: object) -> None:
        raise KeyError("nothing here")

    def __len__(self) -> int:
        return COUNT


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(COUNT).to_sparse(), "layout is torch.sparse_coo"),
        (torch.ones(8, 8).to_sparse_csr(), "layout is torch.sparse_csr"),
        (torch.ones(COUNT, dtype=torch.complex64), "type torch.complex64"),
        (torch.nested.nested_tensor([torch.ones(1)] * COUNT), "no list of numbers|returned shape"),
        (torch.ones(COUNT, device="meta"), "no list of numbers"),
        ([10**400] * COUNT, "no list of numbers"),
        (["1"] * COUNT, "no list of numbers"),
        ([[1.0], 2.0] * (COUNT // 2), "no list of numbers"),
        (Odd(), "no list of numbers"),
        (b"1" * COUNT, "no list of numbers"),
        (None, "no list of numbers"),
    ],
)
def test_what_is_no_list_of_numbers_is_a_failure_and_no_other_error(values, message):
    with pytest.raises(Failed) as caught:
        attempt("mine", lambda *_: values, BATCH)
    assert re.search(message, caught.value.problem)
    assert ask(lambda *_: values).dropped == COUNT


def test_a_reward_that_ends_the_process_fails_like_any_other():
    def ends(images, prompts, metadata):
        raise SystemExit(0)

    with pytest.raises(RewardError, match=r"called sys\.exit\(0\)"):
        call_reward("mine", ends, *BATCH[:3])
    with serving(ends) as url:
        remote = Remote(url)
        for _ in range(2):
            with pytest.raises(RewardError, match=r"got 500 .*called sys\.exit"):
                call_reward("mine", remote, *BATCH[:3])


def test_a_user_error_is_none_of_these():
    def refuses(images, prompts, metadata):
        raise UserError("give it a key")

    with pytest.raises(UserError, match="give it a key"):
        ask(refuses)
