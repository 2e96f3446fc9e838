"""What a failing reward does under each policy: injected failures of every kind, none of which becomes a score."""

from __future__ import annotations

import json
from threading import Event

import pytest
import torch

from dgpo.errors import UserError
from dgpo.rewards.base import Batch, RewardError, group_reward
from dgpo.rewards.combine import RewardSet
from dgpo.rewards.failures import Policy, answer, parse_policy

NAN, INF = float("nan"), float("inf")
PROMPTS = [f"prompt {i}" for i in range(8)]
BATCH = Batch(torch.linspace(0, 1, 8)[:, None, None, None].expand(8, 3, 4, 4), PROMPTS, [{"n": i} for i in range(8)])


def numbers(metadata):
    return [float(row["n"]) for row in metadata]


def ask(reward, policy, folder=None, batch=BATCH):
    return answer("mine", reward, batch, parse_policy("mine", policy), folder, Event())


def raising(error):
    """A reward that fails on the images 2 and 5, and with them in company."""

    def reward(images, prompts, metadata):
        if any(row["n"] in (2, 5) for row in metadata):
            raise error
        return numbers(metadata)

    return reward


def returning(wrong):
    """A reward whose answer is spoiled, as a whole or at the images 2 and 5."""
    return lambda images, prompts, metadata: wrong(numbers(metadata))


def spoiled(value):
    return returning(lambda scores: [value if score in (2, 5) else score for score in scores])


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("raise", Policy()),
        ("drop", Policy(drop=True)),
        ("retry(3, 0.5)", Policy(3, 0.5)),
        (" retry( 2,10 )+drop ", Policy(2, 10.0, True)),
    ],
)
def test_policies_are_read(text, policy):
    assert parse_policy("mine", text) == policy


@pytest.mark.parametrize("text", ["", "retry", "retry(3)", "retry(0, 1)", "retry(-1, 1)", "drop+retry(1, 1)", "ignore"])
def test_what_is_no_policy_is_told(text):
    with pytest.raises(UserError, match=r"'mine' the policy .*; it must be raise, drop, retry\(N, SECONDS\)"):
        parse_policy("mine", text)


@pytest.mark.parametrize(
    "reward",
    [
        raising(ConnectionError("away")),
        raising(TimeoutError("too slow")),
        spoiled(NAN),
        spoiled(INF),
        spoiled(-INF),
        spoiled(None),
        returning(lambda scores: [*scores, 0.0] if {2, 5} & {*scores} else scores),  # the wrong shape
        returning(lambda scores: torch.tensor(scores)[:, None] if {2, 5} & {*scores} else scores),
        returning(lambda scores: {"total": scores, "part": [NAN if score in (2, 5) else 0 for score in scores]}),
        returning(lambda scores: {} if {2, 5} & {*scores} else scores),
    ],
)
def test_drop_leaves_out_the_images_that_fail_and_no_others(reward, tmp_path):
    found = ask(reward, "drop", tmp_path)
    for score in found.scores.values():
        assert score.isnan().nonzero().flatten().tolist() == [2, 5]
    assert found.scores["mine"][~found.scores["mine"].isnan()].tolist() == [0, 1, 3, 4, 6, 7]
    assert (found.retries, found.dropped) == (0, 2)
    kept = sorted(json.loads(path.read_text())["prompt"] for path in tmp_path.glob("*.json"))
    assert kept == ["prompt 2", "prompt 5"], "to be looked at"
    with pytest.raises(RewardError):
        ask(reward, "raise")


def test_finding_them_takes_few_calls():
    calls = []
    ask(lambda *batch: calls.append(len(batch[1])) or raising(OSError())(*batch), "drop")
    assert calls[0] == 8
    assert len(calls) <= 1 + 2 * 2 * 3, "two images, in halves three deep"


def test_a_group_that_fails_is_dropped_whole():
    @group_reward
    def reward(images, prompts, metadata, group_index):
        raising(OSError())(images, prompts, metadata)
        assert group_index.unique().tolist() == [*range(len({row["n"] // 2 for row in metadata}))]
        return numbers(metadata)

    batch = BATCH._replace(group_index=torch.arange(8) // 2)
    found = ask(reward, "drop", batch=batch)
    assert found.scores["mine"].isnan().tolist() == [False, False, True, True, True, True, False, False]


def flaky(times, error=ConnectionError):
    """Down for so many calls, then well. The calls are counted in `calls`."""
    calls = []

    def reward(images, prompts, metadata):
        calls.append(len(prompts))
        if len(calls) <= times:
            raise error("down")
        return numbers(metadata)

    reward.calls = calls
    return reward


class Waits(Event):
    """Notes how long one would have waited."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        return False


def test_a_reward_that_recovers_loses_nothing():
    reward, waits = flaky(3), Waits()
    found = answer("mine", reward, BATCH, parse_policy("mine", "retry(3, 2)"), None, waits)
    assert found.scores["mine"].tolist() == [*range(8)]
    assert (found.retries, found.dropped) == (3, 0)
    assert reward.calls == [8] * 4
    assert waits.seconds == [2, 4, 8], "each twice as long as the one before"


def test_a_reward_that_stays_down_stops_or_drops():
    reward = flaky(99)
    with pytest.raises(RewardError, match=r"raised ConnectionError: down\. Image . of 8"):
        ask(reward, "retry(2, 0)")
    assert reward.calls[:3] == [8, 8, 8]
    found = ask(flaky(99), "retry(2, 0)+drop")
    assert found.scores["mine"].isnan().all()
    assert (found.retries, found.dropped) == (2, 8)


def test_a_wait_ends_when_the_run_does():
    stop, reward = Event(), flaky(99)
    stop.set()
    with pytest.raises(RewardError):
        answer("mine", reward, BATCH, Policy(5, 3600.0), None, stop)


def test_a_users_error_is_neither_repeated_nor_dropped():
    reward = flaky(99, UserError)
    with pytest.raises(UserError, match="down"):
        ask(reward, "retry(3, 0)+drop")
    assert reward.calls == [8]


def test_the_sum_of_a_dropped_image_is_no_number():
    functions = {"good": lambda *_: [1.0] * 8, "bad": spoiled(NAN), "watched": spoiled(INF)}
    failures = {"bad": "drop", "watched": "drop"}
    rewards = RewardSet({"good": 1.0, "bad": 2.0}, functions, watched=["watched"], failures=failures)
    scores, total = rewards(*BATCH[:3])
    assert total.isnan().nonzero().flatten().tolist() == [2, 5]
    assert total[0] == 1
    assert scores["good"].tolist() == [1] * 8
    assert rewards.missing("bad", scores["bad"], BATCH.metadata).sum() == 2
    _, total = RewardSet({"good": 1.0}, functions, watched=["watched"], failures=failures)(*BATCH[:3])
    assert total.tolist() == [1] * 8, "a watched score leaves the sum alone"
