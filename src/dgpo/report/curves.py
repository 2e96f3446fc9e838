"""Small line charts as inline SVG that takes its colours and its font from the page, in light and in dark.

matplotlib draws with placeholder colours, and each becomes a CSS variable of the template afterwards. A chart stays
small because the page sets many side by side; its horizontal ticks read iteration and, under it, wall time.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from dgpo.report.log import Point
from dgpo.report.words import duration, number

SERIES = ("--train", "--series-1", "--series-2", "--series-3", "--series-4", "--series-5")
INK, GRID = "#0a0a01", "#0a0a02"
COLOURS = {INK: "--ink-2", GRID: "--line"} | {f"#0b0b{i:02x}": name for i, name in enumerate(SERIES)}
PLACEHOLDER = dict(zip(COLOURS.values(), COLOURS))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 7.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
}
END_LABEL_GAP = 0.1  # of the chart's height


class Line(NamedTuple):
    """One series. `colour` is one of `SERIES`; a smooth line shows its raw values faintly behind it."""

    points: list[Point]
    colour: str
    smooth: bool = False
    stderr: dict[int, float] = {}  # noqa: RUF012  (never written to)


def chart(
    lines: Sequence[Line],
    label: str,
    elapsed: Sequence[Point] = (),
    share: bool = False,
    log_scale: bool = False,
    reference: float | None = None,
) -> Markup:
    """One chart. `share`: the full range is [0, 1]. `log_scale`: all are positive. `reference`: a dashed level."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(3.6, 2.0))
        axes = figure.add_axes((0.125, 0.17, 0.745, 0.79))
        ends = [_draw(axes, line, log_scale) for line in lines]
        if reference is not None:
            axes.axhline(reference, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        _scale(axes, lines, share, log_scale)
        _iteration_ticks(axes, elapsed)
        _label_ends(axes, ends)
        return _inline(figure, label)


def smoothed(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Centred moving average over a fifteenth of the run on either side, shorter at the ends."""
    sums = np.cumsum([0.0, *values])
    at, reach = np.arange(len(values)), max(1, len(values) // 15)
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _draw(axes: Axes, line: Line, log_scale: bool) -> tuple[float, float, str]:
    """Draw a line and return its end and colour."""
    x, raw = np.array(line.points, dtype=float).T
    colour = PLACEHOLDER[line.colour]
    y = raw
    if line.smooth:
        y = np.exp(smoothed(np.log(raw))) if log_scale else smoothed(raw)
        axes.plot(x, raw, color=colour, alpha=0.3, linewidth=0.8)
    errors = np.array([line.stderr.get(int(i), 0.0) for i in x])
    if errors.any():
        axes.fill_between(x, y - errors, y + errors, color=colour, alpha=0.15, linewidth=0)
    few = not line.smooth and len(x) <= 25
    axes.plot(x, y, color=colour, marker="o" if few or len(x) == 1 else "", markersize=3)
    return float(x[-1]), float(y[-1]), colour


def _scale(axes: Axes, lines: Sequence[Line], share: bool, log_scale: bool) -> None:
    values = [point.value for line in lines for point in line.points]
    if log_scale:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.set_ylim(bottom=0 if min(values) >= 0 else None)
    if share and min(values) >= 0 and 0.25 < max(values) <= 1:
        axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def _iteration_ticks(axes: Axes, elapsed: Sequence[Point]) -> None:
    def label(iteration: float, _: int) -> str:
        seconds = f"\n{duration(np.interp(iteration, *np.array(elapsed).T, left=0.0))}" if elapsed else ""
        return f"{iteration:.0f}{seconds}"

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(label))


def _label_ends(axes: Axes, ends: list[tuple[float, float, str]]) -> None:
    """Each line's last value at its end, moved apart where two would touch."""
    to_share = axes.transData + axes.transAxes.inverted()
    ceiling = 1.0
    for x, y, colour in sorted(ends, key=lambda end: -end[1]):
        right, height = to_share.transform((x, y))
        ceiling = min(ceiling, height)
        label = axes.text(right + 0.02, ceiling, number(y), color=colour, weight="bold", va="center")
        label.set_transform(axes.transAxes)
        ceiling -= END_LABEL_GAP


def _inline(figure: Figure, label: str) -> Markup:
    """The figure's SVG without its own size, font, style sheet and group names, in the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    width, height = 72 * figure.get_size_inches()
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'(?<=<g) id="[^"]*"| font-family: [^;"]*;', "", body)
    for placeholder, variable in COLOURS.items():
        body = body.replace(placeholder, f"var({variable})")
    return Markup(f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{body}')
