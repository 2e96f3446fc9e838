import re
import xml.etree.ElementTree as ET

import numpy as np

from dgpo.report.curves import Line, chart, smoothed
from dgpo.report.log import Point


def test_moving_average_is_centred_and_shortens_at_the_ends():
    assert smoothed([0.0, 3.0, 6.0, 0.0]).tolist() == [1.5, 3.0, 3.0, 3.0]
    line = np.linspace(0, 1, 60)
    np.testing.assert_allclose(smoothed(line.tolist())[4:-4], line[4:-4])


def test_chart_is_sound_svg_in_the_pages_own_colours():
    lines = [
        Line([Point(0, 0.2), Point(50, 0.31), Point(100, 0.7)], "--series-1", stderr={100: 0.05}),
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
    svg = str(chart([Line([Point(0, 1.0), Point(1, 100.0)], "--train", smooth=True)], "noise", log_scale=True))
    assert ">10.00<" in svg
