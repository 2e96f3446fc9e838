"""Whether a reward keeps its contract, found out by calling it.

A score must depend on its own image, prompt and metadata alone, or on its group where the reward declares
`needs_group`: whatever else it depends on (place in the batch, neighbours, chance) is noise in the advantages that no
group takes out. So the same images are scored again, in another order, and alone; and pictures that a policy under
training may well draw (empty, of one colour, noise) must get a finite score.

Two scores count as equal within `tolerance` deviations of the scores at hand, for that is what an advantage is measured
in; or within a millionth of the largest score, which rounding needs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo.core import seeds
from dgpo.errors import UserError
from dgpo.rewards.base import (
    Batch,
    Reward,
    RewardError,
    Scores,
    call_reward,
    check_metadata,
    group_reward,
    needs_group,
)

ROUNDING = 1e-6
TINY, LARGE = 16, 1024  # pixels


class Finding(NamedTuple):
    """A line of the report. passed: None for a figure or a remark, which nothing depends on."""

    check: str
    passed: bool | None
    found: str


def check_reward(name: str, reward: Reward, batch: Batch, tolerance: float) -> list[Finding]:
    """All findings, or only the first where that one fails. A reward that refuses the batch raises UserError.

    batch: at least two images of one size, with what the reward reads; at least two groups where it needs groups
    """
    check_metadata(reward, batch.metadata)
    call, memory = _Call(name, reward), _peak_memory()
    try:
        scores = call(batch)
    except RewardError as error:
        return [Finding("scores", False, call.problem(error))]
    count = len(batch.prompts)
    first = call.seconds.pop(count)[0]
    compared = list(_comparisons(call, batch, scores, tolerance))
    times = _times(first, call.seconds, count)
    return [
        Finding("scores", True, f"{count} finite numbers of {', '.join(scores)}, returned as {call.returned}"),
        *compared,
        *_pictures(call, batch),
        Finding(
            "input unchanged", not call.changed, f"changes {', '.join(sorted(call.changed)) or 'nothing'} in place"
        ),
        *(Finding(f"range of {key}", None, _range(values)) for key, values in scores.items()),
        Finding("time", None, times),
        Finding("memory", None, _memory(memory)),
    ]


class _Call:
    """Calls a reward with copies of what it is given; notes what it changed, what it returned, how long it took."""

    def __init__(self, name: str, reward: Reward) -> None:
        self.name, self.reward = name, reward
        self.changed: set[str] = set()
        self.returned = ""
        self.seconds: dict[int, list[float]] = {}  # images of a call -> of each call

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        def called(*arguments: Any) -> Scores:
            given = Batch(*arguments)
            copy = given.copy()
            started = time.perf_counter()
            try:
                raw = self.reward(*copy[: 4 if needs_group(self.reward) else 3])
            finally:
                self._compare(given, copy)
            self.seconds.setdefault(len(given.prompts), []).append(time.perf_counter() - started)
            self.returned = _described(raw)
            return raw

        measured = group_reward(called) if needs_group(self.reward) else called
        return call_reward(self.name, measured, *batch[:3], group_index=batch.group_index)

    def _compare(self, before: Batch, after: Batch) -> None:
        """Note what a call changed."""
        same = {"images": torch.equal(before.images, after.images)}
        same |= {key: getattr(before, key) == getattr(after, key) for key in ("prompts", "metadata")}
        self.changed |= {key for key, kept in same.items() if not kept}

    def problem(self, error: RewardError | UserError) -> str:
        """What went wrong, without the advice for a run."""
        return str(error).partition(". Image ")[0].removeprefix(f"the reward {self.name!r} ")


def _comparisons(call: _Call, batch: Batch, scores: dict[str, Tensor], tolerance: float) -> Iterator[Finding]:
    count = len(batch.prompts)
    order = torch.randperm(count, generator=seeds.generator(0, "reward check")).tolist()
    alone = "groups alone" if needs_group(call.reward) else "images alone"
    for check, parts in (("the same again", [[*range(count)]]), ("another order", [order]), (alone, batch.units())):
        try:
            parts_scored = [call(batch.rows(rows)) for rows in parts]
        except (RewardError, UserError) as error:
            yield Finding(check, False, call.problem(error))
            continue
        again = {key: torch.cat([part.get(key, torch.empty(0)) for part in parts_scored]) for key in parts_scored[0]}
        expected = {key: values[[row for rows in parts for row in rows]] for key, values in scores.items()}
        yield _compared(check, expected, again, tolerance)


def _compared(check: str, expected: dict[str, Tensor], again: dict[str, Tensor], tolerance: float) -> Finding:
    """The score with the largest difference in units of what is allowed for it."""
    shapes = [{key: values.shape for key, values in scores.items()} for scores in (expected, again)]
    if shapes[0] != shapes[1]:
        return Finding(check, False, f"other scores: {', '.join(again)} instead of {', '.join(expected)}")
    worst = []
    for key, values in expected.items():
        gap = (again[key] - values).abs().max().item()
        allowed = max(tolerance * values.std().item(), ROUNDING * values.abs().max().item())
        worst.append((gap > allowed, gap / allowed if allowed else gap, key, gap, allowed))
    failed, _, key, gap, allowed = max(worst)
    return Finding(check, not failed, f"largest difference {gap:.3g} ({key}), allowed {allowed:.3g}")


def _pictures(call: _Call, batch: Batch) -> Iterator[Finding]:
    """A finite score for each; a clear refusal of a size is one that a run of that size would show at its start."""
    group = batch.rows(batch.units()[0])
    side, noise = batch.images.shape[2:], seeds.generator(0, "reward check", 1)
    for check, images in (
        ("black", torch.zeros(3, *side)),
        ("white", torch.ones(3, *side)),
        ("one colour", torch.tensor([0.8, 0.3, 0.1])[:, None, None].expand(3, *side)),
        ("noise", torch.rand(3, *side, generator=noise)),
        (f"{TINY} pixels", F.interpolate(group.images[:1], [TINY, TINY])[0]),
        (f"{LARGE} pixels", F.interpolate(group.images[:1], [LARGE, LARGE])[0]),
    ):
        shown = group._replace(images=images.expand(len(group.prompts), -1, -1, -1))
        try:
            scores = call(shown)
        except UserError as error:
            yield Finding(check, None, f"refused: {error}")
        except RewardError as error:
            yield Finding(check, False, call.problem(error))
        else:
            yield Finding(check, True, ", ".join(f"{key} {values[0].item():.3g}" for key, values in scores.items()))


def _described(raw: Scores) -> str:
    """Tensor of float32, dict of lists..."""
    if isinstance(raw, dict):
        return f"dict of {', '.join(dict.fromkeys(map(_described, raw.values())))}"
    kind = type(raw).__name__
    return f"{kind} of {str(raw.dtype).removeprefix('torch.')}" if hasattr(raw, "dtype") else kind


def _range(values: Tensor) -> str:
    low, high, mean, std = (part.item() for part in (values.min(), values.max(), values.mean(), values.std()))
    return f"{low:.4g} to {high:.4g}, mean {mean:.4g}, deviation {std:.3g}" + (
        "; it tells none of these images apart" if low == high else ""
    )


def _times(first: float, seconds: dict[int, list[float]], count: int) -> str:
    later = {size: 1e3 * median(seconds[size]) for size in sorted(seconds)}
    calls = ", ".join(f"{size} image{'s' * (size > 1)} {ms:.3g} ms" for size, ms in later.items())
    each = f" ({later[count] / count:.3g} ms an image)" if count in later else ""
    return f"first call {1e3 * first:.3g} ms; later, medians: {calls}{each}"


def _peak_memory() -> int | None:
    """The largest resident memory of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _memory(before: int | None) -> str:
    after = _peak_memory()
    grown = "unknown" if before is None or after is None else f"{(after - before) / 2**20:,.0f} MiB"
    gpu = f"; GPU peak {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB" if torch.cuda.is_available() else ""
    return f"peak resident memory of this process grew by {grown}{gpu}"
