"""Numbers and durations as a reader wants them, the same in the sentences, the tables and the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float, like: float | None = None) -> str:
    """Two decimals around one, two significant digits below, fewer above a hundred; `like` sets the size instead."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "?")
    size = abs(value if like is None else like)
    if size == 0:
        return "0"
    if size < 1e-4:
        return f"{value:.1e}".replace("e-0", "e-").replace("-", "−")
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 0.0995 else 1 - math.floor(math.log10(size))
    return f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float, like: float | None = None) -> str:
    """`number` with its sign always shown: +0.35, −0.02; none where all digits are 0."""
    text = number(value, like)
    return ("+" if value > 0 else "") + text if any(digit in text for digit in "123456789∞?") else text.lstrip("−")


def from_to(first: float, last: float) -> str:
    """Two values with the same decimals: 0.34 → 0.04."""
    size = max(abs(first), abs(last))
    return f"{number(first, size)} → {number(last, size)}"


def duration(seconds: float) -> str:
    """48 s, 14 min, 2 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def seconds(value: float) -> str:
    """A short time with its digits: 0.41 s, 12.3 s, 140 s."""
    return f"{number(value)} s" if value < 10 else f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def percentages(shares: Sequence[float]) -> list[int]:
    """Whole percentages that add up to 100, by largest remainder; the shares add up to 1."""
    whole = [math.floor(100 * share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: whole[i] - 100 * shares[i])
    for i in by_remainder[: 100 - sum(whole)]:
        whole[i] += 1
    return whole


def plural(count: int, noun: str) -> str:
    """1 iteration, 2 iterations."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
