"""The script of bad requests, made short: nothing that is sent is a 5xx, a traceback, or the server's end."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "faults" / "server_requests.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("server_requests", SCRIPT)
    assert spec
    assert spec.loader
    module = sys.modules["server_requests"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["server_requests"]


def test_bad_requests_are_refused_in_words(script):
    found = script.bad_requests(each=8, seed=1)
    assert found["wrong"] == []
    assert found["tracebacks"] == 0
    assert found["requests"] == 8 * len(script.KINDS) == sum(sum(codes.values()) for codes in found["answers"].values())
    assert found["peak_mb"]["after"] - found["peak_mb"]["before"] < 200


def test_rewards_that_fail_are_answers(script):
    found = script.faulty_rewards()
    assert found["wrong"] == []
    assert found["tracebacks"] == 0
    assert found["answers"] == {"500": found["rewards"]}
    assert found["rewards"] == 20


def test_a_bomb_of_pictures_takes_no_memory(script):
    """It took 3.4 GB once."""
    found = script.bomb()
    assert found["kilobytes"] < 600
    assert found["code"] == 413
    assert found["said"] == "a request of 12 images of 4096x4096 pixels has more than 33554432 pixels"
    assert found["grown_mb"] < 50
    assert found["lives"]
    assert found["tracebacks"] == 0
