"""Bad requests to `dgpo serve-reward`: each is refused in JSON, none is a 5xx or a traceback, and the server lives on.

    python benchmarks/faults/server_requests.py [--each 60] [--seed 0]

Writes results/faults/server_requests.json: how often each kind was answered with which code, and the server's memory.
A mutation may leave a request in order, which is then answered with 200. Rewards that fail are a kind of their own:
those are answered with 500, in JSON, and leave no traceback either.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import numpy as np
from PIL import Image

import dgpo

RESULTS = Path(__file__).parents[1] / "results" / "faults" / "server_requests.json"
LIMITS = {"--max-images": "8", "--max-mb": "2", "--max-pixels": "4194304", "--max-total-pixels": "4194304"}
PLAIN = {"encoding": "raw", "shape": [2, 3, 4, 4], "data": np.full(96, 0.5, "<f4").tobytes()}
RIGHT: dict[str, Any] = {
    "protocol": 1,
    "id": "x",
    "images": PLAIN,
    "prompts": ["a", "b"],
    "metadata": ['{"k": 1}', "{}"],
}
REWARD = """
import sys, torch
from dgpo.rewards.base import RewardError

class Odd:
    def __array__(self, *_): raise KeyError("no array")

def faults(n):
    return {
        "index error": lambda: [][5], "key error": lambda: {}["\\ud800"], "exits": lambda: sys.exit(0),
        "names no image": lambda: (_ for _ in ()).throw(RewardError("is broken", 10**6)),
        "out of memory": lambda: (_ for _ in ()).throw(MemoryError()), "recursion": lambda: deep(),
        "sparse": lambda: torch.ones(n).to_sparse(), "complex": lambda: torch.ones(n, dtype=torch.complex64),
        "meta": lambda: torch.ones(n, device="meta"), "nested": lambda: torch.nested.nested_tensor([torch.ones(1)] * n),
        "nan": lambda: [float("nan")] * n, "too few": lambda: [1.0] * (n - 1), "too many": lambda: [1.0] * (n + 1),
        "huge": lambda: [10**400] * n, "none": lambda: None, "empty": dict, "texts": lambda: ["a"] * n,
        "no array": Odd, "odd keys": lambda: {"a": [1.0] * n, ("b",): [1.0]},
        "generator": lambda: (1.0 for _ in range(n)),
    }

def deep(): return deep()

def by_prompt(images, prompts, metadata):
    fault = faults(len(prompts)).get(prompts[0])
    return fault() if fault else [1.0] * len(prompts)
"""


class Sent(NamedTuple):
    """Bytes for the socket. A body alone gets a plain head before it."""

    content: bytes
    raw: bool = False


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def png(size: tuple[int, int] = (4, 4), mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def with_images(files: list[bytes]) -> bytes:
    count = len(files)
    images = {"encoding": "png", "files": files}
    return packed({**RIGHT, "images": images, "prompts": ["a"] * count, "metadata": ["{}"] * count})


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def anything(rng: random.Random) -> Any:
    """A value of some type."""
    values = [
        None,
        True,
        -1,
        0,
        2**63,
        2**64 - 1,
        -(2**63),
        1.5,
        float("nan"),
        float("inf"),
        "",
        "a" * 5000,
        b"",
        b"\xff",
    ]
    return rng.choice(
        [*values, [], {}, [None], [[]] * 9, {"a": {}}, ["a"] * 9, [1, 2], [float("nan")], {"encoding": "raw"}]
    )


def deep_msgpack(rng: random.Random) -> bytes:
    depth, kind = rng.choice((10, 200, 1_000, 10_000, 500_000)), rng.choice((b"\x91", b"\x81\xa1a", b"\x81\x91"))
    nested = kind * depth + b"\xc0"
    place = rng.choice(("whole", *RIGHT, "unknown"))
    if place == "whole":
        return nested
    rest = {key: value for key, value in RIGHT.items() if key != place}
    return bytes([0x80 + len(rest) + 1]) + packed(rest)[1:] + packed(place) + nested


def deep_json(rng: random.Random) -> bytes:
    depth = rng.choice((10, 900, 1_000, 5_000, 100_000, 400_000))
    opening = rng.choice(("[", '{"a":', '[{"a":', '{"a":['))
    closing = "".join({"[": "]", "{": "}"}.get(letter, "") for letter in reversed(opening))
    text = rng.choice(
        (opening * depth + "1" + closing * depth, opening * depth, '{"k": ' + "[" * depth + "]" * depth + "}")
    )
    return packed({**RIGHT, "metadata": ["{}", text]})


def texts(rng: random.Random) -> bytes:
    bad = [b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"a\x80b", b"\xf5\x80\x80\x80", b"\x00" * 4, b"a"]
    body = packed({**RIGHT, "prompts": ["@@@@", "b"], "id": "####"})
    one, two = rng.choice(bad), rng.choice(bad)
    body = body.replace(b"\xa4@@@@", bytes([0xA0 + len(one)]) + one).replace(
        b"\xa4####", bytes([0xA0 + len(two)]) + two
    )
    metadata = ['{"\\ud800": "\\udfff"}', '{"a": "\\u0000"}', "\ufeff{}", "{} {}", "", " ", '{"a": "\n"}', "'a'"]
    return rng.choice((body, packed({**RIGHT, "metadata": ["{}", rng.choice(metadata)]})))


def numbers(rng: random.Random) -> bytes:
    values = [
        "9" * 5000,
        "-" + "9" * 4301,
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "0x10",
        "01",
        "1_000",
        "1.",
        "--1",
        "1e-999",
    ]
    text = rng.choice(values)
    return packed({**RIGHT, "metadata": ["{}", rng.choice((text, f'{{"k": {text}}}', f"[{text}]"))]})


def shapes(rng: random.Random) -> bytes:
    some = [0, 1, 2, 3, 4, 8, -1, 2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1, 1.0, True, None, "3"]
    shape = [rng.choice(some) for _ in range(rng.choice((4, 4, 4, 4, 0, 3, 5)))]
    if rng.random() < 0.5 and len(shape) == 4:
        shape[1] = 3
    data = rng.choice((PLAIN["data"], b"", b"\x00", PLAIN["data"][:-1], PLAIN["data"] * 100))
    return packed({**RIGHT, "images": {"encoding": "raw", "shape": shape, "data": data}})


def pixels(rng: random.Random) -> bytes:
    values = np.full(96, 0.5, "<f4")
    values[rng.randrange(96)] = rng.choice((np.nan, np.inf, -np.inf, -1e-3, 1.001, 1e38, -0.0, 1e-45))
    return packed({**RIGHT, "images": {**PLAIN, "data": values.tobytes()}})


def pictures(rng: random.Random) -> bytes:
    right, start = png(), b"\x89PNG\r\n\x1a\n"
    bomb = start + header(2048, 2048) + chunk(b"IDAT", zlib.compress(bytes(2048 * 6145), 9)) + chunk(b"IEND", b"")
    giant = start + header(2**31 - 1, 2**31 - 1) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    text = start + header(4, 4) + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 9)) + right[33:]
    twice = start + header(4, 4) + header(3000, 3000) + right[33:]
    made: list[Callable[[], list[bytes]]] = [
        lambda: [right[: rng.randrange(len(right))]],
        lambda: [flipped(right, rng)],
        lambda: [start + header(rng.choice((0, 1, 5)), rng.choice((0, 1, 2**32 - 1))) + right[33:]],
        lambda: [start + header(4, 4, rng.randrange(256), rng.randrange(8)) + right[33:]],
        lambda: [right, png((5, 4))],
        lambda: [png(mode=rng.choice(("L", "RGBA", "P", "1", "I;16")))],
        lambda: [png(kind=rng.choice(("JPEG", "GIF", "BMP", "TIFF", "WEBP")))],
        lambda: [bomb] * rng.choice((2, 8)),
        lambda: [giant],
        lambda: [text],
        lambda: [twice],
        lambda: [right] * rng.choice((0, 9, 200)),
        lambda: [b""] * rng.choice((1, 8, 70_000)),
        lambda: [rng.randbytes(rng.randrange(300))],
    ]
    return with_images(rng.choice(made)())


def counts(rng: random.Random) -> bytes:
    lists = {name: ["{}"] * rng.choice((0, 1, 2, 3, 9, 70_000)) for name in ("prompts", "metadata")}
    return packed({**RIGHT, **lists})


def fields(rng: random.Random) -> bytes:
    changed = {**RIGHT, "images": dict(PLAIN)}
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.choice(
            (changed, changed, changed["images"] if isinstance(changed.get("images"), dict) else changed)
        )
        name = rng.choice([*place, "more"])
        if rng.random() < 0.4:
            place.pop(name, None)
        else:
            place[name] = anything(rng)
    return packed(changed) if rng.random() < 0.9 else packed(list(changed.values()))


def http(rng: random.Random) -> Sent:
    body = packed(RIGHT)
    length = f"Content-Length: {len(body)}\r\n".encode()
    heads = [
        length * 2,
        length + b"Content-Length: 3\r\n",
        length + b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        length,
        length + b"Connection: close\r\n",
        *(
            b"Content-Length: " + bad + b"\r\n"
            for bad in (b"-1", b"9" * 30, b"9" * 5000, b"0x10", b"1e3", b"\xb2", b"", b"1 1")
        ),
        length + b"X: " + b"a" * 100_000 + b"\r\n",
        length + b"Authorization: Bearer \xff\xfe\r\n" * 3,
        length + b"no colon\r\n",
        length + b"Content-Type: \x00\r\n",
        length + b"Expect: 100-continue\r\n",
        length + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n",
        length + b"Content-Encoding: gzip\r\n",
        f"Content-Length: {len(body) + 50}\r\n".encode(),
    ]
    lines = [
        b"POST /score HTTP/1.1",
        b"GET /score HTTP/1.1",
        b"PUT /score HTTP/1.1",
        b"POST /score/../../etc/passwd HTTP/1.1",
    ]
    lines += [
        b"POST /%00 HTTP/1.1",
        b"POST /\xff HTTP/1.1",
        b"POST /score HTTP/9.9",
        b"POST /score",
        b"\x16\x03\x01\x02\x00",
    ]
    line = lines[0] if rng.random() < 0.6 else rng.choice(lines)
    sent = body if rng.random() < 0.8 else body[: rng.randrange(len(body))]
    return Sent(line + b"\r\nHost: a\r\n" + rng.choice(heads) + b"\r\n" + sent, raw=True)


KINDS: dict[str, Callable[[random.Random], bytes | Sent]] = {
    "random bytes": lambda rng: rng.randbytes(rng.randrange(2000)),
    "more bytes than allowed": lambda rng: bytes(2_000_001 + rng.randrange(1000)),
    "cut short": lambda rng: packed(RIGHT)[: rng.randrange(len(packed(RIGHT)))],
    "bits flipped": lambda rng: flipped(packed(RIGHT), rng),
    "fields missing, more or of another type": fields,
    "deep msgpack": deep_msgpack,
    "deep JSON": deep_json,
    "numbers in JSON": numbers,
    "texts that are no UTF-8": texts,
    "shapes": shapes,
    "pixels": pixels,
    "PNG files": pictures,
    "numbers of images, prompts and metadata": counts,
    "HTTP": http,
}


class Reply(NamedTuple):
    """code: 0 where the server only closed the connection, or waits for the rest of a request that has none."""

    code: int
    body: bytes = b""


def exchange(port: int, sent: Sent) -> Reply:
    head = f"POST /score HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(sent.content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(sent.content if sent.raw else head.encode() + sent.content)
            connection.settimeout(1 if sent.raw else 60)  # what is raw may be a request that has not ended
        except OSError:
            pass  # refused before it was sent to its end: the answer is there to be read
        got = bytearray()
        try:
            while part := connection.recv(65536):
                got += part
        except OSError:
            pass
    got = re.sub(rb"^HTTP/1\.1 100 .*?\r\n\r\n", b"", bytes(got))  # "go on" is no answer yet
    found = re.match(rb"HTTP/1\.1 (\d{3})", got)
    return Reply(int(found[1]) if found else 0, got.partition(b"\r\n\r\n")[2])


class Server:
    """`dgpo serve-reward` in a process of its own."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        self._log = (folder / "log.txt").open("wb")
        self.log = folder / "log.txt"
        environment = {**os.environ, "PYTHONPATH": str(Path(dgpo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dgpo", "serve-reward", name, "--port", "0", *options]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self.process.stdout
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        assert found, self.log.read_text()
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def peak_mb(self) -> float:
        """The most memory that the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1000 if found else 0.0

    def lives(self) -> bool:
        """Whether a request that is in order gets its scores."""
        answer = httpx2.post(f"{self.url}/score", content=packed(RIGHT), timeout=60)
        waiting = httpx2.get(f"{self.url}/health").json()["waiting"]
        return answer.status_code == 200 and waiting == 0 and self.process.poll() is None

    def tracebacks(self) -> int:
        return self.log.read_text(errors="replace").count("Traceback")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(20)
        self._log.close()


@contextmanager
def served(name: str, *options: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "faulty.py").write_text(REWARD)
        server = Server(name, Path(folder), *options)
        try:
            yield server
        finally:
            server.close()


def is_problem(body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return False


def bad_requests(each: int, seed: int) -> dict[str, Any]:
    """Every kind so often, to one server."""
    answered: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    wrong: list[str] = []
    with served("redness", *(word for pair in LIMITS.items() for word in pair)) as server:
        assert server.lives()
        before = server.peak_mb()
        for kind, make in KINDS.items():
            for number in range(each):
                made = make(random.Random(f"{seed} {kind} {number}"))
                reply = exchange(server.port, made if isinstance(made, Sent) else Sent(made))
                answered[kind][str(reply.code)] += 1
                in_order = reply.code == 200 or (400 <= reply.code < 500 and (kind == "HTTP" or is_problem(reply.body)))
                if not in_order and not (kind == "HTTP" and reply.code == 0):
                    wrong.append(f"{kind}, number {number}: {reply.code} {reply.body[:200]!r}")
            if not server.lives():
                wrong.append(f"{kind}: the server does not live on")
        tracebacks, peak = server.tracebacks(), server.peak_mb()
    return {
        "requests": each * len(KINDS),
        "answers": {kind: dict(sorted(codes.items())) for kind, codes in answered.items()},
        "wrong": wrong,
        "tracebacks": tracebacks,
        "peak_mb": {"before": round(before), "after": round(peak)},
    }


def faulty_rewards() -> dict[str, Any]:
    """Each answered with 500, in JSON, and the server goes on."""
    answered: Counter[str] = Counter()
    wrong: list[str] = []
    names = re.findall(r'"([a-z ]+)": (?:lambda|dict|Odd)', REWARD)
    with served("faulty:by_prompt") as server:
        for name in names:
            reply = exchange(server.port, Sent(packed({**RIGHT, "prompts": [name, name]})))
            answered[str(reply.code)] += 1
            if reply.code != 500 or b"faulty:by_prompt" not in reply.body or not is_problem(reply.body):
                wrong.append(f"{name}: {reply.code} {reply.body[:200]!r}")
        if not server.lives():
            wrong.append("the server does not live on")
        tracebacks = server.tracebacks()
    return {"rewards": len(names), "answers": dict(answered), "wrong": wrong, "tracebacks": tracebacks}


def bomb() -> dict[str, Any]:
    """Twelve black pictures of 4096x4096 in a request of 600 kB, with all limits as they are by default."""
    file = png((4096, 4096))
    body = with_images([file] * 12)
    with served("redness") as server:
        assert server.lives()
        before, started = server.peak_mb(), time.perf_counter()
        reply = exchange(server.port, Sent(body))
        seconds, peak = time.perf_counter() - started, server.peak_mb()
        lives, tracebacks = server.lives(), server.tracebacks()
    return {
        "kilobytes": round(len(body) / 1000),
        "code": reply.code,
        "said": msgspec.json.decode(reply.body)["error"] if is_problem(reply.body) else "",
        "grown_mb": round(peak - before),
        "seconds": round(seconds, 2),
        "lives": lives,
        "tracebacks": tracebacks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=60, help="requests of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = {"bad_requests": bad_requests(given.each, given.seed), "faulty_rewards": faulty_rewards(), "bomb": bomb()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"each": given.each, "seed": given.seed, **found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
