import math

import pytest

from dgpo.report.words import duration, from_to, number, percentages, plural, seconds, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.4567, "0.46"),
        (22.308, "22.31"),
        (0.02, "0.020"),
        (-0.0012, "−0.0012"),
        (-0.0000015, "−1.5e−6"),
        (12345.6, "12,346"),
        (-3, "−3.00"),
        (math.inf, "∞"),
        (math.nan, "?"),
    ],
)
def test_number_keeps_the_digits_that_tell(value: float, text: str):
    assert number(value) == text


def test_two_values_share_their_decimals():
    assert from_to(0.34, 0.041) == "0.34 → 0.04"
    assert from_to(0.0201, 0.0) == "0.020 → 0.000"


def test_signs_times_and_names():
    assert (signed(0.35), signed(-0.35), signed(0.0)) == ("+0.35", "−0.35", "0")
    assert (signed(-0.001, 1.0), signed(0.001, 1.0)) == ("0.00", "0.00")
    assert (duration(48), duration(14 * 60), duration(2 * 3600 + 299)) == ("48 s", "14 min", "2 h 05 min")
    assert (seconds(0.4), seconds(12.34), seconds(140)) == ("0.40 s", "12.3 s", "140 s")
    assert (plural(1, "iteration"), plural(2, "iteration")) == ("1 iteration", "2 iterations")


def test_whole_percentages_add_up_to_a_hundred():
    assert percentages([1 / 3, 1 / 3, 1 / 3]) == [34, 33, 33]
    assert percentages([0.555, 0.248, 0.197]) == [55, 25, 20]
    assert percentages([0.996, 0.004]) == [100, 0]
    assert percentages([1.0]) == [100]
