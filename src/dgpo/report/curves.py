"""Line charts as inline SVG that takes its colours and its font from the page, in light and in dark.

They are written directly, because a page has twenty of them and is written at every evaluation: all of them take a few
milliseconds. The horizontal ticks read iteration and, under it, wall time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from dgpo.report.log import Point
from dgpo.report.words import duration, number

SERIES = ("--train", *(f"--series-{number}" for number in range(1, 9)))
FONT, FEW = 10, 25
SMOOTHED_FROM = 15
"""Points; fewer are drawn as they are, because an average of two or three of them is flat whatever they do."""
WIDE = 0.3
"""Of values between 0 and 1 that may be shares: if they span more, the axis is all of [0, 1]."""


class Line(NamedTuple):
    """One series, ascending. `colour` is one of `SERIES`; a smooth line shows its raw values faintly behind it."""

    points: Sequence[tuple[float, float]]
    colour: str
    smooth: bool = False
    band: Sequence[tuple[float, float]] = ()  # (low, high) at each point
    name: str = ""  # written at the line's end in the place of its last value
    dashed: bool = False


class Frame(NamedTuple):
    """A chart's size and margins in the units of its text."""

    width: float = 310
    height: float = 168
    left: float = 44
    right: float = 46
    top: float = 8
    bottom: float = 30


class _Axis(NamedTuple):
    """Values from `low` to `high` over `start` to `end` of the picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def chart(
    lines: Sequence[Line],
    label: str,
    elapsed: Sequence[Point] = (),
    share: bool | None = False,
    log_scale: bool = False,
    reference: float | None = None,
    frame: Frame = Frame(),  # noqa: B008  (immutable)
) -> Markup:
    """One chart. `log_scale`: all are positive. `reference`: a dashed level.

    share: the full range is [0, 1]; None: nobody knows, and the axis is as the values need it
    """
    curves = [_curve(line, log_scale) for line in lines]
    values = [
        value
        for line in lines
        for value in (*(v for _, v in line.points), *(end for ends in line.band for end in ends))
    ]
    values += [] if reference is None else [reference]
    x = _across([at for line in lines for at, _ in line.points], frame)
    y = _up(values, share, log_scale, frame)
    body = [
        *_grid(x, y, elapsed, frame),
        *(part for line, curve in zip(lines, curves) for part in _draw(line, curve, x, y, log_scale)),
        *([] if reference is None else [_rule(frame, y(reference), "var(--ink-2)", ' stroke-dasharray="4 3"')]),
        *_label_ends(lines, curves, x, y, frame),
    ]
    head = f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" aria-label="{escape(label)}"'
    return Markup(f'{head} font-size="{FONT}">{"".join(body)}</svg>')


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred moving average over a fifteenth of the run on either side, shorter at the ends."""
    sums = np.cumsum([0.0, *values])
    at, reach = np.arange(len(values)), len(values) // SMOOTHED_FROM
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _curve(line: Line, log_scale: bool) -> list[float]:
    """The values that are drawn."""
    raw = [value for _, value in line.points]
    if not line.smooth or len(raw) < SMOOTHED_FROM:
        return raw
    return (np.exp(smoothed(np.log(raw))) if log_scale else smoothed(raw)).tolist()


def _across(at: Sequence[float], frame: Frame) -> _Axis:
    low, high = min(at), max(at)
    pad = 0.03 * (high - low) or 0.5
    return _Axis(low - pad, high + pad, frame.left, frame.width - frame.right)


def _up(values: Sequence[float], share: bool | None, log_scale: bool, frame: Frame) -> _Axis:
    low, high = min(values), max(values)
    if log_scale:
        return _Axis(low / 1.2, high * 1.2, frame.height - frame.bottom, frame.top, log=True)
    wide = high - low > WIDE if share is None else share and high > 0.25
    if wide and low >= 0 and high <= 1:
        low, high = 0.0, 1.04
    else:
        pad = 0.05 * (high - low) or abs(high) or 1.0
        from_zero = low >= 0 and (share is not None or low <= high / 2)
        low, high = (0.0 if from_zero else low - pad), high + pad
    return _Axis(low, high, frame.height - frame.bottom, frame.top)


def _grid(x: _Axis, y: _Axis, elapsed: Sequence[Point], frame: Frame) -> Iterator[str]:
    for value in _log_ticks(y) if y.log else _ticks(y, 4, (1, 2, 2.5, 5, 10)):
        yield _rule(frame, y(value), "var(--line)")
        yield _text(frame.left - 4, y(value) + 0.35 * FONT, f"{value:g}".replace("-", "−"), "end")
    for value in _ticks(x, 5, (1, 2, 5, 10), least=1):
        if value >= 0:
            yield _text(x(value), frame.height - frame.bottom + 1.4 * FONT, f"{value:,.0f}", "middle")
            if elapsed:
                seconds = np.interp(value, *np.array(elapsed, dtype=float).T, left=0.0)
                yield _text(x(value), frame.height - frame.bottom + 2.5 * FONT, duration(float(seconds)), "middle")


def _ticks(axis: _Axis, most: int, steps: Sequence[float], least: float = 0.0) -> list[float]:
    """Round values with at most `most` intervals between them, each at least `least` wide."""
    power = max(least, 10 ** math.floor(math.log10((axis.high - axis.low) / most)))
    widths = (step * power for step in (*steps, 10 * steps[-1]) if step * power >= least)
    return next(ticks for width in widths if len(ticks := _multiples(axis, width)) <= most + 1)


def _multiples(axis: _Axis, width: float) -> list[float]:
    first, last = math.ceil(axis.low / width - 1e-9), math.floor(axis.high / width + 1e-9)
    return [round(i * width, 12) for i in range(first, last + 1)]


def _log_ticks(axis: _Axis) -> list[float]:
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [tick for tick in ticks if axis.low <= tick <= axis.high]
        if len(inside) <= 6:
            break
    return inside[:: math.ceil(len(inside) / 6) or 1]


def _draw(line: Line, curve: list[float], x: _Axis, y: _Axis, log_scale: bool) -> Iterator[str]:
    colour, raw = f"var({line.colour})", [value for _, value in line.points]
    across = [x(at) for at, _ in line.points]
    if curve != raw:
        yield _path(across, map(y, raw), f'stroke="{colour}" stroke-width="1" stroke-opacity="0.3"')
    if line.band:
        edge = [*zip(across, (low for low, _ in line.band)), *zip(across[::-1], (high for _, high in line.band[::-1]))]
        corners = " ".join(f"{at:.1f},{y(value):.1f}" for at, value in edge)
        yield f'<polygon points="{corners}" fill="{colour}" fill-opacity="0.15"/>'
    dashes = ' stroke-dasharray="5 3"' if line.dashed else ""
    yield _path(across, map(y, curve), f'stroke="{colour}" stroke-width="2"{dashes}')
    if curve == raw and len(raw) <= FEW:
        for (at, value), place in zip(line.points, across):
            there = f"{at:,.0f}" if at == round(at) else number(at)
            tip = f"<title>{there}: {number(value)}</title>"
            yield f'<circle cx="{place:.1f}" cy="{y(value):.1f}" r="2.5" fill="{colour}">{tip}</circle>'


def _label_ends(
    lines: Sequence[Line], curves: Sequence[list[float]], x: _Axis, y: _Axis, frame: Frame
) -> Iterator[str]:
    """Each line's name or last value at its end, moved apart where two would touch."""
    ends = sorted((y(curve[-1]), x(line.points[-1][0]), i) for i, (line, curve) in enumerate(zip(lines, curves)))
    places = []
    for height, _, _ in ends:
        places.append(max(height, places[-1] + 1.1 * FONT if places else 0.0))
    below = max(0.0, places[-1] - (frame.height - frame.bottom + FONT))
    for place, (_, right, i) in zip(places, ends):
        text = lines[i].name or number(curves[i][-1])
        style = f' font-weight="bold" fill="var({lines[i].colour})"'
        yield _text(right + 6, place - below + 0.35 * FONT, text, "start", style)


def _rule(frame: Frame, height: float, colour: str, more: str = "") -> str:
    return f'<path d="M{frame.left:g} {height:.1f}H{frame.width - frame.right:g}" stroke="{colour}"{more}/>'


def _path(across: Sequence[float], up: Iterator[float], style: str) -> str:
    places = "L".join(f"{at:.1f} {height:.1f}" for at, height in zip(across, up))
    return f'<path d="M{places}" fill="none" {style}/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = ' fill="var(--ink-2)"') -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'
