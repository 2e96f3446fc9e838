"""The studio under load: ten people teach one run at once, a thousand runs in the folder, an hour of polling.

    python benchmarks/studio_load.py

The server is `dgpo studio`, a process of its own, asked over HTTP on this machine; nothing trains. Groups are made up.
Writes benchmarks/results/studio_load.json: milliseconds of answers and questions, whether each group was answered once,
seconds until a list of a thousand runs is there, and the server's memory while pages poll.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import torch

from dgpo.config import save_yaml
from dgpo.recipes import recipe
from dgpo.recipes.teaching import for_teaching
from dgpo.teach.groups import Group, Groups, sha256
from dgpo.utils.pictures import to_png

RESULTS = Path(__file__).parent / "results" / "studio_load.json"
PEOPLE, GROUPS, RUNS = 10, 400, 1000
POLLS = 2 * 3600 // 2  # of two pages in an hour, each every two seconds


def main() -> None:
    """Measure and write."""
    found = {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0], **people(), **runs(), **polling()}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def people() -> dict[str, Any]:
    """Ten people answer as fast as the server lets them."""
    with tempfile.TemporaryDirectory() as folder, studio(Path(folder)) as (port, _):
        run = taught(Path(folder) / "run", GROUPS)
        took: dict[str, list[float]] = {"answer": [], "next": [], "picture": []}
        began = time.perf_counter()
        threads = [threading.Thread(target=teach, args=(port, f"person {i}", took)) for i in range(PEOPLE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        lines = [json.loads(line) for line in (run / "picks.jsonl").read_text().splitlines()]
        first = Counter(line["group"] for line in lines if line["asked"] == "train")
        return {
            "people": PEOPLE,
            "groups": GROUPS,
            "answers": len(lines),
            "groups_answered_once": sum(count == 1 for count in first.values()),
            "groups_answered_twice": sum(count > 1 for count in first.values()),
            "seconds": round(seconds, 2),
            "milliseconds": {name: quantiles(times) for name, times in took.items()},
        }


def teach(port: int, who: str, took: dict[str, list[float]]) -> None:
    """What a page does: the pictures, the group that follows, the answer; until nothing is left."""
    server = Server(port)
    asked = server.get("/api/teach/next", took["next"], who=who)
    while "group" in asked:
        for picture in asked["images"]:
            server.ask("GET", picture, took["picture"])
        server.get("/api/teach/next", took["next"], who=who, after=asked["group"])
        answer = {"group": asked["group"], "who": who, "good": [0], "bad": [asked["size"] - 1]}
        told = server.ask("POST", "/api/teach/answer", took["answer"], answer)
        asked = json.loads(told)["next"] or server.get("/api/teach/next", took["next"], who=who)


def runs() -> dict[str, Any]:
    """A folder of a thousand runs, as a page opens it."""
    with tempfile.TemporaryDirectory() as folder:
        source = taught(Path(folder) / "source", 1)
        rows = [{"iteration": i, "train/reward_mean": 0.5, "time/iteration": 2.0} for i in range(1, 41)]
        (source / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number in range(RUNS):
            run = Path(folder) / "runs" / f"run-{number:04d}"
            run.mkdir(parents=True)
            for name in ("config.yaml", "environment.json", "metrics.jsonl"):
                os.link(source / name, run / name)
        with studio(Path(folder) / "runs") as (port, _):
            server, began = Server(port), time.perf_counter()
            server.ask("GET", "/", [])
            told = server.get("/api/runs", [])
            first = time.perf_counter() - began
            listed = shown = len(told["runs"])
            while told["unread"]:
                told = server.get("/api/runs", [], since=told["now"])
                listed += len(told["runs"])
            every = time.perf_counter() - began
            time.sleep(1)
            began = time.perf_counter()
            server.get("/api/runs", [], since=told["now"])
            return {
                "runs": listed,
                "seconds_until_the_page_shows_runs": round(first, 3),
                "runs_shown_by_then": shown,
                "seconds_until_all_are_listed": round(every, 3),
                "seconds_of_a_later_look": round(time.perf_counter() - began, 3),
            }


def polling() -> dict[str, Any]:
    """The memory of a server that two pages ask for an hour, without the waiting between two questions."""
    with tempfile.TemporaryDirectory() as folder, studio(Path(folder)) as (port, pid):
        taught(Path(folder) / "run", 40)
        server, megabytes = Server(port), []
        for count in range(POLLS):
            server.get("/api/teach/status", [])
            if count % 2 == 0:
                server.get("/api/teach/next", [], who=f"person {count % 20}")
            if count % 5 == 0:
                server.get("/api/runs", [])
            if count % (POLLS // 10) == POLLS // 10 - 1:
                megabytes.append(round(resident(pid), 1))
        return {"polls": POLLS, "megabytes_after_each_tenth": megabytes}


class Server:
    """A connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str, took: list[float], **query: Any) -> dict[str, Any]:
        """JSON of an address."""
        return json.loads(self.ask("GET", f"{path}?{urlencode(query)}", took))

    def ask(self, method: str, path: str, took: list[float], body: Any = None) -> bytes:
        """Ask, and note how long it took."""
        began = time.perf_counter()
        text = None if body is None else json.dumps(body)
        self._connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
        answer = self._connection.getresponse()
        content = answer.read()
        took.append(time.perf_counter() - began)
        assert answer.status in (200, 202), content
        return content


@contextmanager
def studio(folder: Path) -> Iterator[tuple[int, int]]:
    """The studio of a folder: its port, and its process."""
    command = [sys.executable, "-m", "dgpo", "studio", str(folder), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http://" in line)
        try:
            yield int(line.rpartition(":")[2].strip(" /\n")), process.pid
        finally:
            process.terminate()


def taught(run: Path, groups: int, size: int = 6) -> Path:
    """A run that people teach, with groups of pictures of one colour each."""
    run.mkdir(parents=True)
    save_yaml(replace(for_teaching(recipe("tiny")), out=str(run)), run / "config.yaml")
    (run / "metrics.jsonl").touch()
    (run / "environment.json").write_text("{}")
    known = Groups(run)
    for number in range(groups):
        pictures = [to_png(torch.rand(3, 64, 64)) for _ in range(size)]
        images = tuple(map(sha256, pictures))
        group = Group(number=number, kind="train", prompt=f"prompt {number}", iteration=0, images=images)
        known.add(group, pictures, torch.zeros(size, 4, 8, 8))
    return run


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {
        name: round(1000 * value, 1) for name, value in (("50 %", cuts[49]), ("95 %", cuts[94]), ("99 %", cuts[98]))
    }


def resident(pid: int) -> float:
    """Megabytes that a process has in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
