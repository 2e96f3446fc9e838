"""A few of the trials that kills.py and faulty_rewards.py make in number."""

from __future__ import annotations

import random

import faulty_rewards
import kills
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return faulty_rewards.undisturbed(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("fault", ["OutOfMemoryError", "UserError", "sys.exit(0)", "os._exit(0)"])
def test_a_faulty_reward_loses_nothing(config, fault):
    row = faulty_rewards.trial(fault, config)
    assert row["passed"], row


@pytest.mark.parametrize("kind", kills.KINDS)
def test_a_run_killed_at_random_moments_equals_the_run_never_killed(kind, tmp_path):
    row = kills.trial(kind, 2, random.Random(kind), tmp_path)
    assert row["kills"] > 0
    assert row["problem"] is None
