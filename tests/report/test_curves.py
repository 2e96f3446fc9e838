import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest
from cost import ratio

from dgpo.report.curves import Frame, Line, _up, chart, smoothed
from dgpo.report.log import Point


def test_moving_average_is_centred_and_shortens_at_the_ends():
    assert smoothed([*range(0, 27, 3), 0, 0, 0, 0, 0, 0]).tolist()[:3] == [1.5, 3.0, 6.0]
    line = np.linspace(0, 1, 60)
    np.testing.assert_allclose(smoothed(line.tolist())[4:-4], line[4:-4])


def test_a_short_series_is_drawn_as_it_is():
    """An average of the two points of a young run would be flat."""
    assert smoothed([0.2, 0.6]).tolist() == pytest.approx([0.2, 0.6])
    svg = str(chart([Line([Point(1, 0.2), Point(2, 0.6)], "--train", smooth=True)], "reward"))
    assert ">0.60<" in svg
    assert svg.count("<circle") == 2
    heights = [float(text) for text in re.findall(r'cy="([0-9.]+)"', svg)]
    assert heights[0] - heights[1] > 50


def test_chart_is_sound_svg_in_the_pages_own_colours():
    lines = [
        Line(
            [Point(0, 0.2), Point(50, 0.31), Point(100, 0.7)],
            "--series-1",
            band=[(0.2, 0.2), (0.31, 0.31), (0.65, 0.75)],
        ),
        Line([Point(100, 0.69)], "--series-2"),
    ]
    svg = str(chart(lines, 'shapes <"strict">', [Point(0, 0.0), Point(100, 900.0)], share=True, reference=0.5))
    root = ET.fromstring(svg.replace("xlink:", ""))
    assert root.get("aria-label") == 'shapes <"strict">'
    assert {"0.70", "0.69", "15 min"} <= set(root.itertext())
    assert all(f"var({name})" in svg for name in ("--series-1", "--series-2", "--ink-2", "--line"))
    assert not re.search(r": *#[0-9a-f]{6}", svg)
    assert "font-family" not in svg


def test_a_log_scale_smooths_ratios_not_differences():
    points = [Point(i, 1.0 if i < 13 else 100.0) for i in range(15)]
    svg = str(chart([Line(points, "--train", smooth=True)], "noise", log_scale=True))
    assert ">100.0<" in svg
    points[-1] = Point(14, 1.0)
    assert ">10.00<" in str(chart([Line(points, "--train", smooth=True)], "noise", log_scale=True))


def _numbers(svg: str, anchor: str) -> list[str]:
    return re.findall(rf'text-anchor="{anchor}"[^>]*>([^<]*)<', svg)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], ["0", "0.25", "0.5", "0.75", "1"]),
        ([3e-3, 3e-3], ["0", "0.002", "0.004", "0.006"]),
        ([-0.4, 0.9], ["−0.25", "0", "0.25", "0.5", "0.75"]),
        ([0.002, 0.0231], ["0", "0.005", "0.01", "0.015", "0.02"]),
        ([120.0, 4000.0], ["0", "1000", "2000", "3000", "4000"]),
    ],
)
def test_ticks_are_round_and_few(values: list[float], expected: list[str]):
    svg = str(chart([Line([*enumerate(values)], "--train")], "x"))
    assert _numbers(svg, "end") == expected
    assert _numbers(svg, "middle") == ["0", "1"], "iterations are whole"


@pytest.mark.parametrize("end", [1e-3, 0.4, 1.0])
def test_a_chart_may_end_before_its_first_whole_tick(end: float):
    svg = chart([Line([(0.0, 0.3), (end, 0.5)], "--train")], "score")
    assert ">0</text>" in svg


def test_names_at_the_ends_of_lines_never_touch():
    lines = [Line([(0, 0.1), (9, 0.5 + i / 1000)], "--train", name=f"line{i}") for i in range(8)]
    svg = str(chart(lines, "x", frame=Frame(right=90)))
    heights = sorted(float(y) for y in re.findall(r'y="([0-9.]+)" text-anchor="start"', svg))
    assert len(heights) == 8
    assert min(np.diff(heights)) > 10
    assert heights[0] > 0
    assert heights[-1] <= 168


def test_a_chart_takes_time_in_proportion_to_its_run():
    """A run writes its page at every evaluation."""

    def drawing(count: int) -> Callable[[], object]:
        points = [Point(i, 0.5 + 0.01 * (i % 7)) for i in range(count)]
        return lambda: chart([Line(points, "--train", smooth=True)], "x", points)

    assert ratio(drawing(8000), drawing(1000)) < 16, "eight times as long a run takes about eight times as long"


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ((0.1, 0.26), (0.0, 0.268)),
        ((0.52, 0.58), (0.517, 0.583)),
        ((0.007, 0.81), (0.0, 1.04)),
        ((20.0, 22.0), (19.9, 22.1)),
    ],
    ids=["small", "high", "a share", "no share"],
)
def test_the_axis_of_a_score_is_as_its_values_need_it(values, ends):
    axis = _up(values, None, False, Frame())
    assert (axis.low, axis.high) == pytest.approx(ends)
