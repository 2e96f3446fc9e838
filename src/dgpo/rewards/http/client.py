"""A reward that `dgpo serve-reward`, or any other server of the protocol in `wire`, computes elsewhere.

A call is cut into chunks, which a pool of servers answers at the same time (`pool`). A score belongs to its image
because the answer repeats the request's id and holds as many numbers as it had images; anything else is a RewardError.
Scores come back in the order of the images, each once, and with encoding "raw" the server's reward sees the very
pixels that it would see here.

A server sees chunks, merged with those of others: a reward that compares images with each other is not to be served.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_args

from torch import Tensor

from dgpo.errors import Extra, UserError
from dgpo.rewards.base import RewardAway, RewardError
from dgpo.rewards.http import calls, wire
from dgpo.rewards.http.auth import bearer, secret
from dgpo.rewards.http.calls import Unavailable
from dgpo.rewards.http.pool import Pool, Session
from dgpo.rewards.rows import Verdict

with Extra("remote", "a remote reward"):
    import httpx2
    import msgspec

TOKEN = "DGPO_REWARD_TOKEN"
T = TypeVar("T")
ROWS = 500
"""Prompts that a server is asked about at a time, before a run."""
_decode_answer = msgspec.msgpack.Decoder(wire.Answer).decode
_decode_checked = msgspec.msgpack.Decoder(wire.Checked).decode


class Remote:
    """images (B, 3, H, W) in [0, 1] -> {score: B floats}, the first of them the served reward's own.

    urls: one address, several with commas between, or a list; all servers of a pool serve the same reward. timeout:
    seconds for one chunk. retries: further rounds over the pool while no server answers; 8 take about a minute, which
    an outage costs once: until a server answers again, each later call asks every one once.
    token_env: the environment variable with the servers' token; None: DGPO_REWARD_TOKEN, if it is set. chunk: images
    in a request at most; the servers' own limits can lower it. in_flight: requests that one server has at once.
    encoding: "raw" is exact, "png" smaller and 8 bit.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        timeout: float = 300.0,
        retries: int = 8,
        token_env: str | None = None,
        chunk: int = 32,
        in_flight: int = 4,
        encoding: wire.Encoding = "raw",
    ) -> None:
        if timeout <= 0 or retries < 0 or chunk < 1 or in_flight < 1 or encoding not in get_args(wire.Encoding):
            raise UserError(
                f"a remote reward cannot work with timeout={timeout}, retries={retries}, chunk={chunk}, "
                f"in_flight={in_flight}, encoding={encoding!r}: timeout must be above 0, retries at least 0, chunk and "
                f"in_flight at least 1, encoding one of {', '.join(get_args(wire.Encoding))}"
            )
        self.chunk = chunk
        self.encoding: wire.Encoding = encoding
        given = urls.split(",") if isinstance(urls, str) else urls
        self._pool = Pool(given, bearer(secret(token_env, TOKEN)), timeout, retries, in_flight)
        self._versions = calls.run(self._greet)
        self.required_metadata = tuple(dict.fromkeys(key for v in self._versions for key in v.required_metadata))
        self.image_side = next((v.image_side for v in self._versions if v.image_side is not None), None)
        self.__name__ = self._pool.patience.reward = self._versions[0].reward

    def __call__(self, images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> dict[str, list[float]]:
        size, texts = self._chunk_size(images), [_json(row, i) for i, row in enumerate(metadata)]
        parts = [
            _Part(start, images[start : start + size], prompts[start : start + size], texts[start : start + size])
            for start in range(0, len(prompts), size)
        ]
        answers = calls.run(self._score, parts)
        for part, answer in zip(parts, answers):
            if list(answer) != list(answers[0]):
                raise RewardError(f"gave the scores {list(answers[0])}, then {list(answer)}", part.start)
        return {name: [value for answer in answers for value in answer[name]] for name in answers[0]}

    def check_every_row(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """What the served reward says of each prompt before a run; nothing, where a server of the pool cannot check.

        UserError if it cannot be asked.
        """
        if not all(version.checks_rows for version in self._versions):
            return []
        try:
            texts = [_json(row, i) for i, row in enumerate(metadata)]
            starts = self._starts(prompts, texts)
            ends = [*starts[1:], len(prompts)]
            answers = calls.run(self._check, [(prompts[i:end], texts[i:end]) for i, end in zip(starts, ends)])
        except (Unavailable, RewardError) as error:
            raise UserError(f"the served reward {self.__name__!r} cannot be shown the prompts: {error}") from error
        found: list[Verdict] = [None] * len(prompts)
        for start, answer in zip(starts, answers):
            for row, doubt in answer.doubts.items():
                found[start + row] = doubt
            for row, problem in answer.refused.items():
                found[start + row] = UserError(problem)
        return found

    def _starts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[int]:
        """The first row of each request that every server takes; a row that is too large alone is a request too."""
        most = int(0.9 * min(version.max_bytes for version in self._versions))
        starts, held = [], 0
        for row, (prompt, text) in enumerate(zip(prompts, texts)):
            size = len(prompt.encode()) + len(text) + 10  # what msgpack adds, at most
            if not starts or row - starts[-1] == ROWS or held + size > most:
                starts.append(row)
                held = 0
            held += size
        return starts

    async def _check(self, parts: list[tuple[Sequence[str], list[str]]]) -> list[wire.Checked]:
        async with self._pool.session() as session:
            return await calls.together(self._check_part(session, *part) for part in parts)

    async def _check_part(self, session: Session, prompts: Sequence[str], texts: list[str]) -> wire.Checked:
        body = msgspec.msgpack.encode(wire.Rows(wire.PROTOCOL, [*prompts], texts))
        response = await session.post("/check", lambda: body)
        answer = _decoded(response, _decode_checked)
        if not all(0 <= row < len(prompts) for row in (*answer.refused, *answer.doubts)):
            raise RewardError(f"got an answer from {response.url} about rows that it was not asked about")
        return answer

    async def _greet(self) -> list[wire.Version]:
        """What the servers say of themselves; a pool may begin with some of them away."""
        async with self._pool.session() as session:
            answers = await session.get_each("/version")
        away = [str(answer) for answer in answers if isinstance(answer, Unavailable)]
        versions = [_version(answer) for answer in answers if isinstance(answer, httpx2.Response)]
        if not versions:
            raise UserError(f"no server of rewards answers: {'; '.join(away)}. Start one with: dgpo serve-reward NAME")
        if len({version.reward for version in versions}) > 1:
            served = ", ".join(repr(version.reward) for version in versions)
            raise UserError(f"the servers of one pool serve different rewards: {served}; name them as separate ones")
        sides = dict.fromkeys(str(v.image_side) for v in versions if v.image_side is not None)
        if len(sides) > 1:
            raise UserError(
                f"the servers of one pool serve rewards that read images of other sizes: {', '.join(sides)} pixels; "
                "name them as separate ones"
            )
        for problem in away:
            warnings.warn(f"{problem}; the other servers of the pool score without it", stacklevel=2)
        return versions

    def _chunk_size(self, images: Tensor) -> int:
        """Images of a request that every server takes; a tenth of its bytes is left for the texts."""
        each = images[:1].numel() * (4 if self.encoding == "raw" else 1) or 1
        pixels = images[:1].numel() // 3 or 1
        limits = [self.chunk]
        for version in self._versions:
            limits += [version.max_images, int(0.9 * version.max_bytes) // each]
            limits += [] if version.max_pixels is None else [version.max_pixels // pixels]
        return max(1, min(limits))

    async def _score(self, parts: list[_Part]) -> list[dict[str, list[float]]]:
        async with self._pool.session() as session:
            return await calls.together(self._score_part(session, part) for part in parts)

    async def _score_part(self, session: Session, part: _Part) -> dict[str, list[float]]:
        name, count = uuid.uuid4().hex, len(part.prompts)

        def body() -> bytes:
            images = wire.pack_images(part.images, self.encoding)
            return msgspec.msgpack.encode(wire.Request(wire.PROTOCOL, name, images, part.prompts, part.metadata))

        try:
            response = await session.post("/score", body)
            return _scores(response, name, self.__name__, count)
        except Unavailable as error:
            problem = f"could not score images {part.start} to {part.start + count - 1}: {error}"
            raise (RewardAway if error.nobody else RewardError)(problem, part.start) from error
        except RewardAway:
            raise
        except RewardError as error:
            raise RewardError(error.problem, part.start + error.index) from error


class _Part(NamedTuple):
    """Images from number `start` on. metadata: JSON texts."""

    start: int
    images: Tensor
    prompts: list[str]
    metadata: list[str]


def _json(row: Mapping[str, Any], index: int) -> str:
    try:
        return json.dumps(row)
    except (TypeError, ValueError) as error:
        raise RewardError(f"cannot send metadata that is no JSON: {error}", index) from error


def _version(response: httpx2.Response) -> wire.Version:
    """What a server says of itself; UserError if it is not to be used."""
    server = str(response.url).removesuffix("/version")
    if response.status_code == 401:
        raise UserError(f"{server} refuses the token: give the server's in {TOKEN}, or in the variable of token_env")
    try:
        version = msgspec.json.decode(response.content, type=wire.Version)
    except msgspec.DecodeError:
        said = f"it answered {response.status_code}: {calls.excerpt(response)}"
        raise UserError(f"{server} is no server of rewards; {said}") from None
    if version.protocol != wire.PROTOCOL:
        raise UserError(
            f"{server} speaks protocol {version.protocol} (dgpo {version.dgpo}) and this client {wire.PROTOCOL}; "
            "install the same version of dgpo on both sides"
        )
    return version


def _decoded(response: httpx2.Response, decode: Callable[[bytes], T]) -> T:
    """What a server has answered; RewardError if it has refused, or answered something else."""
    where = f"from {response.url}"
    if response.status_code != 200:
        raise _refusal(response, where)
    try:
        return decode(response.content)
    except msgspec.DecodeError as error:
        raise RewardError(f"got an answer {where} that is none of this protocol: {error}") from error


def _scores(response: httpx2.Response, name: str, reward: str, count: int) -> dict[str, list[float]]:
    """The scores in the answer to the request called `name`, of `count` images; RewardError if there are none."""
    where = f"from {response.url}"
    answer = _decoded(response, _decode_answer)
    if (answer.id, answer.reward) != (name, reward):
        raise RewardError(
            f"got another answer {where} than the one asked for: {answer.id!r} of the reward {answer.reward!r} in the "
            f"place of {name!r} of {reward!r}"
        )
    scores = {score.name: score.values for score in answer.scores}
    if not scores or len(scores) < len(answer.scores) or any(len(values) != count for values in scores.values()):
        told = ", ".join(f"{len(score.values)} of {score.name!r}" for score in answer.scores) or "none"
        raise RewardError(f"got scores {where} that are not {count} of each name: {told}")
    return scores


def _refusal(response: httpx2.Response, where: str) -> RewardError:
    """What a server that answers without scores says is wrong, and on which image, if it has looked at them."""
    code = response.status_code
    try:
        problem = msgspec.json.decode(response.content, type=wire.Problem)
    except msgspec.DecodeError:
        return RewardAway(f"got {code} {where}: {calls.excerpt(response)}")
    if code not in wire.ABOUT_IMAGES:
        return RewardAway(f"got {code} {where}: {problem.error}")
    return RewardError(f"got {response.status_code} {where}: {problem.error}", problem.index or 0)
