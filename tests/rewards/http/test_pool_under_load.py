"""A pool of real servers under load: one is killed and comes back, and no score is lost, doubled or wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import torch

import dgpo
from dgpo.rewards.http.client import Remote

pytestmark = pytest.mark.slow

THREADS, CALLS, IMAGES = 8, 10, 25  # 2,000 images
SLOW = 1_000_000
REWARD = (
    f"""
import os, time
SLOW = {SLOW}
"""
    + """

def number(images, prompts, metadata):
    digits = images.flatten(1)[:, :3].mul(255).round().long().tolist()
    values = [int.from_bytes(bytes(three), "big") for three in digits]
    assert [row["number"] for row in metadata] == values
    time.sleep(1 if SLOW in values else 0.005)
    return {"number": values, "process": [os.getpid()] * len(prompts)}
"""
)


class Server:
    """`dgpo serve-reward` in a process of its own."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "dgpo", "serve-reward", "number_reward:number", "--port", str(port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dgpo.__file__).parents[1])}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)

    def port(self) -> int:
        """Once it listens."""
        assert self.process.stdout
        match = re.search(r"http://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        assert match
        return int(match[1])


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    (tmp_path / "number_reward.py").write_text(REWARD)
    started = [Server(tmp_path), Server(tmp_path)]
    yield started
    for server in started:
        server.process.kill()
        server.process.wait(20)


def score(remote: Remote, numbers: list[int]) -> tuple[list[float], list[float]]:
    """Of images that hold these numbers in their first pixels: the numbers, and the processes that read them."""
    images = torch.zeros(len(numbers), 3, 4, 4)
    for image, number in zip(images, numbers):
        image.view(-1)[:3] = torch.tensor([*number.to_bytes(3, "big")]) / 255
    scores = remote(images, [str(number) for number in numbers], [{"number": number} for number in numbers])
    return scores["number_reward:number"], scores["process"]


def test_no_score_is_lost_doubled_wrong_or_misplaced(servers: list[Server], tmp_path: Path) -> None:
    ports = [server.port() for server in servers]
    remote = Remote([f"http://127.0.0.1:{port}" for port in ports], chunk=5, timeout=60, retries=12)
    begun, back = threading.Event(), threading.Event()

    def work(thread: int) -> tuple[list[int], list[float], list[float]]:
        asked, read, processes = [], [], []
        for call in range(CALLS):
            assert call < CALLS // 2 or back.wait(60)
            numbers = [(thread * CALLS + call) * IMAGES + i for i in range(IMAGES)]
            some, by = score(remote, numbers)
            asked, read, processes = asked + numbers, read + some, processes + by
            if call == 1:
                begun.set()
        return asked, read, processes

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, thread) for thread in range(THREADS)]
        assert begun.wait(60)
        servers[0].process.kill()
        servers.append(Server(tmp_path, ports[0]))
        assert servers[-1].port() == ports[0]
        back.set()
        results = [future.result() for future in futures]

    assert all(read == asked for asked, read, _ in results)
    assert sorted(n for asked, _, _ in results for n in asked) == list(range(THREADS * CALLS * IMAGES))
    processes = {process for _, _, some in results for process in some}
    assert {server.process.pid for server in servers[:2]} <= processes
    for _ in range(600):  # the one that is back gets work again, after its rest
        if servers[-1].process.pid in processes:
            break
        threading.Event().wait(0.1)
        processes |= set(score(remote, list(range(20)))[1])
    assert servers[-1].process.pid in processes

    with ThreadPoolExecutor(1) as pool:  # one that is told to end finishes what it has
        last = pool.submit(score, Remote(f"http://127.0.0.1:{ports[1]}", retries=0), [SLOW])
        while httpx2.get(f"http://127.0.0.1:{ports[1]}/health").json()["waiting"] == 0:
            assert not last.done()
        servers[1].process.terminate()
        assert last.result()[0] == [SLOW]
    assert servers[1].process.wait(20) in (0, -signal.SIGTERM)
