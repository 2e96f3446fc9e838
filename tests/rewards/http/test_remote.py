"""The client of served rewards: exact scores in order, and an error for everything else."""

from __future__ import annotations

import json
import sys
import threading
import time

import msgspec
import pytest
import torch
from fake_http import Asked, Reply, answering, serving

from dgpo.commands import main as cli
from dgpo.config import load_yaml, save_yaml
from dgpo.data.prompts import PromptSet
from dgpo.errors import UserError
from dgpo.rewards.base import RewardError, call_reward, check_metadata, reads_side, requires
from dgpo.rewards.combine import RewardSet
from dgpo.rewards.http import wire
from dgpo.rewards.http.client import Remote
from dgpo.rewards.registry import resolve
from dgpo.rewards.rows import checks_rows

pytestmark = pytest.mark.slow

IMAGES = torch.rand(10, 3, 8, 6, generator=torch.Generator().manual_seed(0))
PROMPTS = [f"prompt ü {i}" for i in range(10)]
METADATA = [{"n": i, "include": [{"class": "x"}]} for i in range(10)]


@requires("n")
def mine(images, prompts, metadata):
    """Depends on every part of an image's row."""
    weights = torch.linspace(0, 1, images[0].numel()).view(images.shape[1:])
    values = (images * weights).flatten(1).double().sum(1)
    return {"sum": [v + 10 * len(p) for v, p in zip(values, prompts)], "n": [row["n"] for row in metadata]}


def version(**changes):
    return msgspec.json.encode(
        msgspec.structs.replace(wire.Version(wire.PROTOCOL, "0", "mine", [], 100, 10**6), **changes)
    )


def right(request: wire.Request) -> wire.Answer:
    return wire.Answer(1, request.id, "mine", [wire.Scores("mine", [float(len(p)) for p in request.prompts])])


def faked(score):
    """A server whose /version is in order and whose /score is `score` of the request, given as Reply or Answer."""

    def answer(asked: Asked) -> Reply:
        if asked.path == "/version":
            return Reply(version())
        reply = score(msgspec.msgpack.decode(asked.body, type=wire.Request))
        return reply if isinstance(reply, Reply) else Reply(msgspec.msgpack.encode(reply))

    return answering(answer)


def call(reward):
    return call_reward("it", reward, IMAGES, PROMPTS, METADATA)


@pytest.mark.parametrize("servers", [1, 2])
def test_raw_scores_are_those_of_the_reward_itself(servers):
    with serving(mine) as one, serving(mine) as two:
        remote = Remote([one, two][:servers], chunk=3)
        assert {name: scores.tolist() for name, scores in call(remote).items()} == {
            name: scores.tolist() for name, scores in call(mine).items()
        }
        with pytest.raises(UserError, match=r"mine reads n .*prompt 0 has no n"):
            check_metadata(remote, [{}])


def test_png_scores_are_those_of_8_bits():
    with serving(mine) as url:
        scores = call(Remote(url, encoding="png", chunk=4))
    rounded = call_reward("it", mine, IMAGES.mul(255).round() / 255, PROMPTS, METADATA)
    assert torch.equal(scores["it"], rounded["it"])
    assert not torch.equal(scores["it"], call(mine)["it"])


def test_an_address_is_a_name_wherever_rewards_are_named(tmp_path, would_train):
    with serving(mine) as one, serving(mine) as two, serving(mine, "other") as three:
        pool = f"{one},{two}"
        assert cli.main(["train", "--rewards", f"{pool}=0.5", "redness=2", "--eval-rewards", three]) == 130
        save_yaml(would_train[0], tmp_path / "config.yaml")
        config = load_yaml(tmp_path / "config.yaml")
        assert config.rewards == {pool: 0.5, "redness": 2}
        scores, total = RewardSet(config.rewards, watched=config.eval_rewards)(IMAGES, PROMPTS, METADATA)
    assert scores.keys() == {pool, f"{pool}/n", "redness", three, f"{three}/n"}
    assert torch.equal(total, 0.5 * scores[pool] + 2 * scores["redness"])


def test_no_more_images_than_a_server_takes_in_one_request():
    sizes = []
    with serving(lambda images, *_: sizes.append(len(images)) or [0.0] * len(images), max_images=2) as url:
        Remote(url)(IMAGES, PROMPTS, METADATA)
    assert set(sizes) == {2}
    with serving(mine, max_mb=0.004) as url:  # room for 6 images of 576 bytes
        assert Remote(url)(IMAGES, PROMPTS, METADATA)["n"] == list(range(10))


def test_a_reward_that_fails_names_the_image_and_is_not_called_again(tmp_path):
    calls = []

    def fails(images, prompts, metadata):
        calls.append(len(prompts))
        return [1 / (row["n"] - 6) for row in metadata]

    with (
        serving(fails) as url,
        pytest.raises(RewardError, match=r"'it' got 500 from .*'mine' raised ZeroDiv.*Image 6 "),
    ):
        call_reward("it", Remote(url), IMAGES, PROMPTS, METADATA, tmp_path)
    assert json.loads((tmp_path / "it-00006.json").read_text())["metadata"]["n"] == 6
    assert sum(calls) <= 20  # the server halved its ten images; the client called once


def test_input_that_a_reward_refuses_is_told_in_its_own_words():
    def refuses(images, prompts, metadata):
        raise UserError("put the text in quotes")

    with serving(refuses) as url, pytest.raises(RewardError, match=r"422 .*put the text in quotes"):
        call(Remote(url))
    with serving(mine) as url:
        pictures = IMAGES.clone()
        pictures[7, 0, 0, 0] = float("nan")
        with pytest.raises(RewardError, match=r"pixels must be finite .*Image 7 of 10"):
            call_reward("it", Remote(url, chunk=4), pictures, PROMPTS, METADATA)
        with pytest.raises(RewardError, match=r"no JSON.*Image 3 of 10"):
            call_reward("it", Remote(url), IMAGES, PROMPTS, [{"n": {1} if i == 3 else 0} for i in range(10)])


def test_tokens(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cret-token")
    with serving(mine, token="s3cret-token") as url:
        assert Remote(url, token_env="MY_TOKEN")(IMAGES, PROMPTS, METADATA)["n"] == list(range(10))
        for given in ("", "wrong-token"):
            monkeypatch.setenv("DGPO_REWARD_TOKEN", given)
            with pytest.raises(UserError, match="refuses the token") as caught:
                resolve(url)
            assert "-token" not in str(caught.value)
    with pytest.raises(UserError, match="variable NOT_SET is to hold"):
        Remote("http://127.0.0.1:1", token_env="NOT_SET")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda r: Reply(b"\xc1garbage"), "none of this protocol"),
        (lambda r: Reply(b""), "none of this protocol"),
        (lambda r: Reply(b"<html>Oops</html>", 500), "got 500 .*Oops"),
        (lambda r: Reply(b"", 302, {"Location": "/elsewhere"}), "got 302"),
        (lambda r: wire.Answer(2, r.id, "mine", right(r).scores), r"none of this protocol.*protocol"),  # pyright: ignore
        (lambda r: wire.Answer(1, "x", "mine", right(r).scores), "another answer .*'x'"),
        (lambda r: wire.Answer(1, r.id, "yours", right(r).scores), "another answer .*'yours'"),
        (lambda r: wire.Answer(1, r.id, "mine", []), "not 10 of each name: none"),
        (lambda r: wire.Answer(1, r.id, "mine", [wire.Scores("mine", [1.0] * 9)]), "not 10 of each name: 9 of 'mine'"),
        (lambda r: wire.Answer(1, r.id, "mine", right(r).scores * 2), "not 10 of each name"),
        (lambda r: wire.Answer(1, r.id, "mine", [wire.Scores("mine", [1.0, float("nan")] * 5)]), "nan .*Image 1 of 10"),
        (lambda r: wire.Answer(1, r.id, "mine", [wire.Scores("mine", ["1"] * 10)]), "none of this protocol"),  # pyright: ignore
    ],
)
def test_what_is_no_answer_is_an_error(answer, message):
    with faked(answer) as url, pytest.raises(RewardError, match=message):
        call(Remote(url))


def test_chunks_whose_scores_have_other_names_are_an_error():
    def answer(request):
        return wire.Answer(1, request.id, "mine", [wire.Scores(request.prompts[0], [1.0])])

    with faked(answer) as url, pytest.raises(RewardError, match=r"gave the scores .*Image 1 of 10"):
        call(Remote(url, chunk=1))


def test_a_pool_that_cannot_be_used_is_told_at_the_start(monkeypatch):
    with pytest.raises(UserError, match=r"no server of rewards answers: .*127\.0\.0\.1:1/version cannot be reached"):
        resolve("http://127.0.0.1:1")
    with answering(lambda _: Reply(b"Not here", 404)) as url, pytest.raises(UserError, match=r"no server .*404: Not"):
        resolve(url)
    newer = Reply(version(protocol=2, dgpo="9"))
    with answering(lambda _: newer) as url, pytest.raises(UserError, match=r"protocol 2 \(dgpo 9\) and this client 1"):
        resolve(url)
    with serving(mine) as one, serving(mine, "other") as two:
        with pytest.raises(UserError, match="different rewards: 'mine', 'other'"):
            resolve(f"{one},{two}")
        with pytest.warns(UserWarning, match=r"127\.0\.0\.1:1/version .*score without it"):
            remote = resolve(f"http://127.0.0.1:1,{one}")
        assert len(call(remote)["it"]) == 10
    for bad in ("http://me:pass@host", "http://host?x=1", "http://", "http://a b", "http://host,ftp://host"):
        with pytest.raises(UserError) as caught:
            resolve(bad)
        assert "pass@" not in str(caught.value)
    with pytest.raises(UserError, match="chunk=0"):
        Remote("http://127.0.0.1:1", chunk=0)


def test_a_slow_server_is_asked_again_and_then_given_up():
    asked, gone = [], threading.Event()

    def slow(request):
        asked.append(request.id)
        gone.wait(20)
        return Reply(b"")

    with faked(slow) as url:
        with pytest.raises(RewardError, match=r"could not score images 0 to 9: .*within 0.3 seconds"):
            call(Remote(url, timeout=0.3, retries=1))
        gone.set()
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_a_server_that_is_busy_is_left_alone_as_long_as_it_says():
    times = []

    def busy(request):
        times.append(time.monotonic())
        return Reply(b"", 503, {"Retry-After": "1"}) if len(times) == 1 else right(request)

    with faked(busy) as url:
        assert call(Remote(url))["it"].tolist() == [len(p) for p in PROMPTS]
    assert times[1] - times[0] >= 1


def test_a_server_that_fails_leaves_its_share_to_the_others():
    asked = []

    def broken(request):
        asked.append(request)
        return Reply(b"", 502)

    with faked(broken) as bad, serving(mine) as good:
        assert Remote([bad, good], chunk=1, retries=0)(IMAGES, PROMPTS, METADATA)["n"] == list(range(10))
    assert 1 <= len(asked) <= 4


def test_in_flight_bounds_the_requests_of_one_server():
    lock, now, most = threading.Lock(), [0], [0]

    def count(request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return right(request)

    with faked(count) as url:
        Remote(url, chunk=1, in_flight=2)(IMAGES, PROMPTS, METADATA)
    assert most == [2]


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx2", None)
    for module in ("http.calls", "http.client", "http.pool", "builtin.vlm_judge"):
        monkeypatch.delitem(sys.modules, f"dgpo.rewards.{module}", raising=False)
    with pytest.raises(UserError, match=r"pip install 'dgpo\[remote\]'"):
        resolve("http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"pip install 'dgpo\[remote\]'"):
        resolve("vlm_judge")


# --- prompts before a run


def looks(prompt, metadata):
    if metadata.get("class") == "unicorn":
        raise UserError(f"no unicorns in {prompt!r}")
    return "says little" if len(prompt) < 3 else None


def declaring(decorator):
    """A reward of its own for each test, since decorators mark the function."""
    return decorator(lambda images, prompts, metadata: [0.0] * len(prompts))


def rows_of(*prompts, **metadata):
    return PromptSet([*prompts], [metadata] * len(prompts), [f"line {i + 1}" for i in range(len(prompts))])


def test_prompts_are_shown_to_a_served_reward_as_to_one_here(monkeypatch):
    monkeypatch.setattr("dgpo.rewards.http.client.ROWS", 2)
    here = declaring(checks_rows(looks))
    rows = rows_of("a cat", "x", "two dogs", "a cup", "é")
    mixed = PromptSet(rows.prompts, [{}, {}, {"class": "unicorn"}, {}, {"class": "unicorn"}], rows.places)
    with serving(here) as url:
        served = Remote(url)
        assert RewardSet({"far": 1.0}, {"far": served}).check(rows) == RewardSet({"far": 1.0}, {"far": here}).check(
            rows
        )
        for reward in (served, here):
            with pytest.raises(UserError, match=r"^line 3: no unicorns in 'two dogs'. 1 more .*: line 5$"):
                RewardSet({"far": 1.0}, {"far": reward}).check(mixed)


def test_a_served_reward_whose_check_fails_is_not_taken_for_one_without_doubts():
    def breaks(prompt, metadata):
        raise KeyError("no such thing")

    with (
        serving(declaring(checks_rows(breaks))) as url,
        pytest.raises(UserError, match="'mine' cannot be shown the prompts"),
    ):
        Remote(url).check_every_row(["a"], [{}])
    with serving(declaring(checks_rows(looks)), token="right") as url:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DGPO_REWARD_TOKEN", "right")
            served = Remote(url, retries=0)
        assert served.check_every_row(["a"], [{}]) == ["says little"]
    with pytest.raises(UserError, match=r"'mine' cannot be shown the prompts: .*cannot be reached"):
        served.check_every_row(["a"], [{}])


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (b"no msgpack", "none of this protocol"),
        (msgspec.msgpack.encode(wire.Checked(1, {3: "x"}, {})), "rows that it was not asked about"),
    ],
)
def test_an_answer_about_other_rows_is_none(reply, problem):
    def answer(asked: Asked) -> Reply:
        return Reply(version(checks_rows=True) if asked.path == "/version" else reply)

    with answering(answer) as url, pytest.raises(UserError, match=problem):
        Remote(url).check_every_row(["a"], [{}])


def test_a_server_that_checks_nothing_is_not_asked():
    asked = []

    def answer(request: Asked) -> Reply:
        asked.append(request.path)
        return Reply(version())

    with answering(answer) as url:
        assert Remote(url).check_every_row(["a"], [{}]) == []
    assert asked == ["/version"]


def test_the_size_that_a_served_reward_reads_is_known():
    with serving(declaring(reads_side(64))) as url:
        assert Remote(url).image_side == 64
    with serving(mine) as url:
        assert Remote(url).image_side is None


def test_prompts_are_shown_in_requests_that_the_server_takes():
    seen = []

    def looks(prompt, metadata):
        seen.append(prompt)
        return "is the last" if prompt == prompts[-1] else None

    prompts = [f"{i} " + "x" * 400 for i in range(60)]
    with serving(declaring(checks_rows(looks)), max_mb=0.01) as url:
        found = Remote(url).check_every_row(prompts, [{"note": "y" * 300}] * 60)
    assert found == [None] * 59 + ["is the last"]
    assert sorted(seen) == sorted(prompts)


def test_what_any_server_of_a_pool_declares_holds_for_the_pool():
    old, new = lambda _: Reply(version()), lambda _: Reply(version(image_side=64, required_metadata=["class"]))
    with answering(old) as first, answering(new) as second:
        pool = Remote([first, second])
    assert (pool.image_side, pool.required_metadata) == (64, ("class",))
    with (
        answering(new) as first,
        answering(lambda _: Reply(version(image_side=32))) as second,
        pytest.raises(UserError, match=r"images of other sizes: 64, 32 pixels"),
    ):
        Remote([first, second])
