"""Rewards beside the sampler: the scores of calls one after the other, whatever comes first; no thread stays."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from dgpo.rewards.base import RewardError, Seen, group_reward
from dgpo.rewards.combine import RewardSet

PROMPTS = ["a", "a", "a", "b", "b", "b", "c", "c"]
METADATA = [{"tag": {"a": "one", "b": "two", "c": "one"}[prompt], "n": i} for i, prompt in enumerate(PROMPTS)]
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
IMAGES = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def brightness(images, prompts, metadata):
    return images.mean((1, 2, 3))


@group_reward
def apart(images, prompts, metadata, group_index):
    """How far an image's brightness is from the mean of its group."""
    bright = images.mean((1, 2, 3))
    means = [bright[group_index == group].mean() for group in range(int(group_index.max()) + 1)]
    return bright - torch.stack(means)[group_index]


def scored(rewards, cuts=(3, 6), **options):
    with rewards.scoring(PROMPTS, METADATA, GROUPS, **options) as scoring:
        for part in IMAGES.tensor_split(cuts):
            scoring.add(part)
        return scoring.result()


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reward ")]


def test_what_is_shared_is_whole_before_another_stream_reads_it(monkeypatch):
    """A look only queues its kernels, and rewards that share it have other streams."""
    happened = []
    stream = SimpleNamespace(synchronize=lambda: happened.append("waited"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    seen = Seen(IMAGES)

    def look(images):
        happened.append("queued")
        return images.sum()

    for _ in range(2):
        assert seen.by(look) == IMAGES.sum()
    assert happened == ["queued", "waited"]


@pytest.mark.parametrize("cuts", [(), (3, 6), (1, 2, 4, 7), (5,)])
def test_threads_change_no_score(cuts):
    """Of images and of groups, wherever a batch ends; the slow one is overtaken by the others."""

    def slow(images, prompts, metadata):
        time.sleep(0.02)
        return {"bright": brightness(images, prompts, metadata), "n": [row["n"] for row in metadata]}

    rewards = RewardSet({"slow": 1.0, "quick": 2.0, "apart": 1.0}, {"slow": slow, "quick": brightness, "apart": apart})
    serial, total = rewards(IMAGES, PROMPTS, METADATA, GROUPS)
    found = scored(rewards, cuts)
    assert found.scores.keys() == serial.keys() == {"slow", "quick", "apart", "slow/n"}
    assert all(torch.equal(found.scores[name], serial[name]) for name in serial)
    assert found.scores["slow/n"].tolist() == [*range(8)]
    assert torch.equal(rewards.weighted(found.scores, METADATA), total)
    assert not threads()


def test_a_reward_that_needs_groups_waits_for_them():
    calls = []

    @group_reward
    def whole(images, prompts, metadata, group_index):
        calls.append(([row["n"] for row in metadata], group_index.tolist()))
        return [0.0] * len(prompts)

    scored(RewardSet({"whole": 1.0}, {"whole": whole}), cuts=(2, 7))
    assert calls == [([0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1]), ([6, 7], [0, 0])]
    calls.clear()
    found = scored(RewardSet({"whole": 1.0}, {"whole": whole}), elsewhere=frozenset({1}))
    assert [rows for rows, _ in calls] == [[0, 1, 2], [6, 7]], "group 1 has images on another rank"
    assert found.scores["whole"].isnan().tolist() == [False] * 3 + [True] * 3 + [False] * 2


def test_a_reward_is_called_with_its_own_images_only():
    calls = []

    def of_one(images, prompts, metadata):
        calls.append([row["n"] for row in metadata])
        assert torch.equal(images, IMAGES[calls[-1]])
        return [10.0] * len(prompts)

    functions = {"of_one": of_one, "all": brightness, "apart": apart}
    rewards = RewardSet(
        {"of_one": 1.0, "all": 2.0}, functions, watched=["apart"], tags={"of_one": ("one",), "apart": ("two",)}
    )
    found = scored(rewards, cuts=(2, 4, 6))
    assert calls == [[0, 1], [2], [6, 7]]
    of_one, apart_ = found.scores["of_one"], found.scores["apart"]
    assert of_one.isnan().tolist() == [False] * 3 + [True] * 3 + [False] * 2
    assert apart_.isnan().tolist() == [True] * 3 + [False] * 3 + [True] * 2
    total = rewards.weighted(found.scores, METADATA)
    assert torch.allclose(total, 2 * IMAGES.mean((1, 2, 3)) + 10 * (~of_one.isnan()))
    assert not rewards.missing("of_one", of_one, METADATA).any(), "it is not missing where it does not apply"


def test_a_failure_ends_the_sampling_with_its_picture_kept(tmp_path):
    """The reward has failed before the next images come."""

    def bad(images, prompts, metadata):
        raise OSError("no disk")

    rewards = RewardSet({"bad": 1.0}, {"bad": bad}, save_failures_to=tmp_path)

    def sampled():
        with rewards.scoring(PROMPTS, METADATA, GROUPS) as scoring:
            for image in IMAGES.split(1):
                scoring.add(image)
                time.sleep(0.5)
        pytest.fail("it went on")

    with pytest.raises(RewardError, match=r"'bad' raised OSError: no disk\. Image 0 of 1, prompt 'a'"):
        sampled()
    assert len(list(tmp_path.glob("bad-*.png"))) == 1
    assert not threads()


def test_ctrl_c_does_not_wait_for_a_slow_reward():
    release, done = threading.Event(), []

    def slow(images, prompts, metadata):
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(30)
        done.append(len(prompts))
        return brightness(images, prompts, metadata)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            scored(RewardSet({"slow": 1.0}, {"slow": slow}))
        assert not done
    finally:
        release.set()
        signal.signal(signal.SIGINT, before)
    for thread in threading.enumerate():
        if thread.name.startswith("reward "):
            thread.join(10)
    assert done == [3], "what had begun ends, and the batches behind it are not begun"
    assert not threads()


def test_an_object_with_two_names_is_called_once_at_a_time():
    busy, most = [], []

    def reward(images, prompts, metadata):
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.01)
        busy.pop()
        return [0.0] * len(prompts)

    scored(RewardSet({"one": 1.0, "two": 1.0}, {"one": reward, "two": reward}))
    assert most == [1] * 6


def test_the_calls_repeated_and_the_images_dropped_are_counted():
    calls = []

    def flaky(images, prompts, metadata):
        calls.append(1)
        if len(calls) == 2:
            raise OSError
        return [float("nan") if row["n"] == 6 else 0.0 for row in metadata]

    found = scored(RewardSet({"flaky": 1.0}, {"flaky": flaky}, failures={"flaky": "retry(1, 0)+drop"}))
    assert found.failures == {"retries/flaky": 2, "dropped/flaky": 1}
    assert found.scores["flaky"].isnan().nonzero().flatten().tolist() == [6]
    assert found.busy > 0


def test_reward_threads_have_the_gpu_of_their_process_and_a_stream_each(monkeypatch):
    """CUDA's current device and stream belong to a thread; a new one has the first GPU, and the stream of all.

    The threads of later images have the same streams: each keeps the memory that was free on it.
    """
    current = threading.local()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "index", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: setattr(current, "index", index))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: (device, object()))
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(current, "stream", stream))
    seen = []

    def looks(images, prompts, metadata):
        seen.append((threading.current_thread().name.split("_")[0], torch.cuda.current_device(), current.stream))
        return [0.0] * len(prompts)

    def also_looks(images, prompts, metadata):
        return looks(images, prompts, metadata)

    torch.cuda.set_device(3)
    rewards = RewardSet({"looks": 1.0, "also": 1.0}, {"looks": looks, "also": also_looks})
    scored(rewards)
    scored(rewards)
    assert {(name, index) for name, index, _ in seen} == {("reward looks", 3), ("reward also", 3)}
    assert len({stream for _, _, stream in seen}) == 2
    assert all(stream[0] == 3 for _, _, stream in seen)
    assert not hasattr(current, "stream")  # the sampler's
