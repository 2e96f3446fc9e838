"""When a reward fails: the run stops, the call is repeated, or the image is left out. It never gets a made-up score.

A reward fails where it raises, returns NaN or infinity, or something that is no list of numbers. Its policy is one of

    raise (the default)     retry(N, SECONDS)     drop     retry(N, SECONDS)+drop

`retry` repeats a call N times at most, after SECONDS, then twice as long, and so on. `drop` leaves out the images that
fail, found by halving a batch that fails as a whole; where nobody answered (RewardAway), no image is to blame, and the
whole batch is left out at once. A UserError is a setting to be mended: neither applies to it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import NamedTuple

import torch
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    wait_exponential,
)
from tenacity.stop import stop_when_event_set
from torch import Tensor

from dgpo.errors import UserError
from dgpo.rewards.base import Batch, Failed, Reward, attempt, call_on_batch, reward_error, save_failure
from dgpo.rewards.notices import notice

_POLICY = re.compile(r"(raise|drop)|retry\(\s*([1-9]\d*)\s*,\s*(\d+\.?\d*)\s*\)(\+drop)?")


class Policy(NamedTuple):
    """What to do when a reward fails."""

    retries: int = 0
    seconds: float = 0.0  # before the first of them
    drop: bool = False


class Answer(NamedTuple):
    """What one call, with all that its policy did, gave."""

    scores: dict[str, Tensor]  # name -> (B,) fp32; NaN, in all of them, for an image that was dropped
    retries: int
    dropped: int
    seconds: float


def parse_policy(reward: str, text: str) -> Policy:
    """The policy that a config gives a reward."""
    match = _POLICY.fullmatch(text.strip())
    if not match:
        raise UserError(
            f"reward_failures gives {reward!r} the policy {text!r}; it must be raise, drop, retry(N, SECONDS) or "
            "retry(N, SECONDS)+drop, such as retry(3, 2): three times, after 2, 4 and 8 seconds"
        )
    plain, retries, seconds, then = match.groups()
    return Policy(int(retries or 0), float(seconds or 0), "drop" in (plain, (then or "").lstrip("+")))


def answer(name: str, reward: Reward, batch: Batch, policy: Policy, folder: Path | None, stop: Event) -> Answer:
    """Call a reward as its policy says. `stop`, once set, ends waits and repetitions."""
    started = time.perf_counter()
    if policy == Policy():
        scores, retries = call_on_batch(name, reward, batch, folder), 0
    else:
        scores, retries = _patiently(name, reward, batch, policy, folder, stop)
    lost = scores[name].isnan().nonzero().flatten().tolist()
    if folder:
        for index in lost:
            with suppress(OSError):  # what is dropped stops no run, nor does a full disk here
                save_failure(name, index, batch, folder)
    return Answer(scores, retries, len(lost), time.perf_counter() - started)


def joined(count: int, parts: Iterable[tuple[list[int], dict[str, Tensor]]]) -> dict[str, Tensor]:
    """name -> (count,) from (rows, name -> (len(rows),)); NaN where no part has a score of that name."""
    whole: dict[str, Tensor] = {}
    for rows, scores in parts:
        for name, score in scores.items():
            whole.setdefault(name, torch.full((count,), torch.nan))[rows] = score
    return whole


def _patiently(
    name: str, reward: Reward, batch: Batch, policy: Policy, folder: Path | None, stop: Event
) -> tuple[dict[str, Tensor], int]:
    def tell(state: RetryCallState) -> None:
        failed = state.outcome.exception() if state.outcome else None
        assert isinstance(failed, Failed)
        seconds = state.next_action.sleep if state.next_action else 0.0
        call = f"call {state.attempt_number + 1} of {1 + policy.retries} in {seconds:.3g} s"
        notice(f"the reward {name!r} {failed.problem}; {call}")

    calls = Retrying(
        stop=stop_after_attempt(1 + policy.retries) | stop_when_event_set(stop),
        wait=wait_exponential(multiplier=policy.seconds),
        sleep=sleep_using_event(stop),
        retry=retry_if_exception_type(Failed),
        before_sleep=tell,
        reraise=True,
    )
    try:
        scores = calls(attempt, name, reward, batch)
    except Failed as failed:
        if not policy.drop:
            raise reward_error(name, reward, batch, failed, folder) from failed.__cause__
        scores = _rescued(name, reward, batch, failed, stop)
    return scores, calls.statistics["attempt_number"] - 1


def _rescued(name: str, reward: Reward, batch: Batch, failed: Failed, stop: Event) -> dict[str, Tensor]:
    """The scores that a call which failed leaves, NaN for the images that are dropped."""
    if failed.scores:
        return _finite(failed.scores)
    if failed.away:
        notice(f"the reward {name!r} {failed.problem}; {len(batch.prompts)} image(s) are left out")
        return _nothing(name, batch)
    return _in_halves(name, reward, batch, stop)


def _in_halves(name: str, reward: Reward, batch: Batch, stop: Event) -> dict[str, Tensor]:
    """The scores of a batch that failed as a whole, NaN for what fails alone: an image, or a group."""
    units = batch.units()
    if len(units) == 1 or stop.is_set():
        return _nothing(name, batch)
    parts = []
    for half in (units[: len(units) // 2], units[len(units) // 2 :]):
        rows = [row for unit in half for row in unit]
        part = batch.rows(rows)
        try:
            scores = attempt(name, reward, part)
        except Failed as failed:
            scores = _rescued(name, reward, part, failed, stop)
        parts.append((rows, scores))
    return joined(len(batch.prompts), parts)


def _nothing(name: str, batch: Batch) -> dict[str, Tensor]:
    return {name: torch.full((len(batch.prompts),), torch.nan)}


def _finite(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """NaN in every score of an image of which any is not finite."""
    lost = ~torch.stack([score.isfinite() for score in scores.values()]).all(0)
    return {name: score.masked_fill(lost, torch.nan) for name, score in scores.items()}
