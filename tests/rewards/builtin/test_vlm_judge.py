"""The judge asks a real HTTP endpoint, which is made up here, and reads its answers strictly."""

from __future__ import annotations

import base64
import io
import json
import threading
import time

import pytest
import torch
from fake_http import Asked, Reply, answering
from PIL import Image

from dgpo.errors import UserError
from dgpo.rewards.base import RewardError, call_reward, check_metadata
from dgpo.rewards.builtin.vlm_judge import VLMJudge
from dgpo.rewards.registry import resolve

pytestmark = pytest.mark.slow

IMAGES = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 4, 4)
PROMPTS = [f"grey {i}" for i in range(6)]
METADATA = [{"style": f"s{i}"} for i in range(6)]
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "DGPO_JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)


def chat(text: str | None) -> Reply:
    return Reply(json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode())


def saying(*texts: str | None):
    """An endpoint that gives these answers to the prompts, by the number at their end."""
    return answering(lambda asked: chat(texts[int(json.loads(asked.body)["messages"][0]["content"][1]["text"][-1])]))


def call(judge):
    return call_reward("vlm_judge", judge, IMAGES, PROMPTS, METADATA)


def test_a_call_holds_the_picture_the_question_and_the_settings(monkeypatch):
    asked: list[Asked] = []

    def score_of_the_picture(request: Asked) -> Reply:
        asked.append(request)
        url = json.loads(request.body)["messages"][0]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        return chat(f"<think>The picture is grey.</think>\n**Score:** {picture.getpixel((1, 1))[0] / 51}")

    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    with answering(score_of_the_picture) as url:
        judge = VLMJudge(
            f"{url}/v1/", "judge-7b", key_env="MY_KEY", template="Is it {style}? {{Say}}: {prompt}", score_range=(0, 5),
            request={"temperature": 0.5},
        )  # fmt: skip
        assert call(judge)["vlm_judge"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
        with pytest.raises(UserError, match="reads style"):
            check_metadata(judge, [{}])
    assert {(a.path, a.headers["Authorization"]) for a in asked} == {("/v1/chat/completions", f"Bearer {KEY}")}
    body = json.loads(min(asked, key=lambda a: a.body.index(b"Is it")).body)
    assert (body["model"], body["temperature"]) == ("judge-7b", 0.5)
    texts = {json.loads(a.body)["messages"][0]["content"][1]["text"] for a in asked}
    assert texts == {f"Is it s{i}? {{Say}}: grey {i}" for i in range(6)}


def test_by_its_name_it_is_set_up_by_the_environment(monkeypatch):
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        resolve("vlm_judge")
    with saying(*[f"Score: {i}" for i in range(6)]) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(UserError, match="DGPO_JUDGE_MODEL"):
            resolve("vlm_judge")
        monkeypatch.setenv("DGPO_JUDGE_MODEL", "any")
        assert call(resolve("vlm_judge"))["vlm_judge"].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("answer", ["I cannot say", None, "Score: 11", "Score: -1", "Score: 7,5", "Score: 3. Score: 4"])
def test_an_answer_without_one_score_is_an_error_or_what_was_said_to_count(answer):
    with saying("Score: 1", "Score: 2. Yes, Score 2.0", answer, '{"score": 4.0}', "Score: 5", "Score: 10/10") as url:
        with pytest.raises(RewardError, match=r"could not read one score from 0 to 10 .*Image 2 of 6"):
            call(VLMJudge(url, "any"))
        with pytest.warns(UserWarning, match=r"1 of 6 answers .* count as 0.25; the first is"):
            scores = call(VLMJudge(url, "any", unparsable=0.25))
    assert scores["vlm_judge"].tolist() == pytest.approx([0.1, 0.2, 0.25, 0.4, 0.5, 1])
    assert scores["vlm_judge/unparsable"].tolist() == [0, 0, 1, 0, 0, 0]


def test_concurrency_is_bounded():
    lock, now, most = threading.Lock(), [0], [0]

    def count(_: Asked) -> Reply:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        return chat("Score: 1")

    with answering(count) as url:
        call(VLMJudge(url, "any", concurrency=2))
    assert most == [2]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_failure_is_tried_again(code):
    times: list[float] = []
    pause = "0" if code == 500 else "1"

    def second_time(_: Asked) -> Reply:
        times.append(time.monotonic())
        return chat("Score: 7") if len(times) > 1 else Reply(b"busy", code, {"Retry-After": pause})

    with answering(second_time) as url:
        scores = VLMJudge(url, "any")(IMAGES[:1], ["a"], [{}])
    assert scores == [0.7]
    assert times[1] - times[0] >= float(pause)


def test_no_answer_in_time_is_an_error():
    asked, done = [], threading.Event()

    def slow(request: Asked) -> Reply:
        asked.append(request)
        done.wait(20)
        return chat("Score: 1")

    with answering(slow) as url:
        with pytest.raises(RewardError, match=r"no answer of the judge: .*within 0.3 seconds.*not about the images"):
            call_reward("vlm_judge", VLMJudge(url, "any", timeout=0.3, retries=1), IMAGES[:1], ["a"], [{}])
        done.set()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(b"no", 401), "the key in OPENAI_API_KEY is missing or wrong"),
        (Reply(f"I got {KEY} and hate it".encode(), 400), r"answered 400: I got \*\*\* and"),
        (Reply(f"{KEY} is over its quota".encode(), 429), r"429: \*\*\* is over"),
        (Reply(b"no such model", 404), "answered 404: no such model"),
        (Reply(b"<html>"), "no chat completion: .*answered 200: <html>"),
        (Reply(b"[]"), "no chat completion"),
        (Reply(b'{"choices": []}'), "no chat completion"),
        (Reply(b'{"choices": [{"text": "Score: 1"}]}'), "no chat completion"),
        (Reply(b"", 302, {"Location": "http://elsewhere"}), "no chat completion: .*302"),
    ],
)
def test_what_is_no_answer_is_an_error_and_the_key_is_in_none(reply, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with answering(lambda _: reply) as url, pytest.raises(RewardError, match=message) as caught:
        call(VLMJudge(url, "any", retries=0))
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key_env": "NOT_SET"}, "NOT_SET is to hold a secret"),
        ({"template": "{prompt"}, "cannot be filled in"),
        ({"template": "{} {prompt}"}, "has fields"),
        ({"pattern": r"(\d+)"}, "needs a group called score"),
        ({"pattern": "("}, "is no regular expression"),
        ({"score_range": (1, 1)}, "the range must rise"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_settings_that_cannot_work_are_told_before_anything_is_asked(settings, message):
    with pytest.raises(UserError, match=message):
        VLMJudge("http://127.0.0.1:1", "any", **settings)


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nand more")
    with pytest.raises(UserError, match="OPENAI_API_KEY has characters") as caught:
        VLMJudge("http://127.0.0.1:1", "any")
    assert KEY not in str(caught.value)


def test_a_template_that_does_not_fit_a_prompt_names_it():
    judge = VLMJudge("http://127.0.0.1:1", "any", template="{style[9]} {prompt}")
    with pytest.raises(RewardError, match=r"cannot fill in its template: IndexError.*Image 0 of 6"):
        call(judge)
