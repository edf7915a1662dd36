from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.toolchain.report.axes import Axis, scale, ticks
from slimdeploy.toolchain.report.charts import SHARE, milliseconds


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.13, 0.19, [0.14, 0.16, 0.18]),
        (-3, 7, [-2, 0, 2, 4, 6]),
    ],
)
def test_ticks_are_round_numbers_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_logarithmic_axis():
    assert ticks(1, 100, log=True) == pytest.approx([1, 10, 100])
    assert ticks(0.4, 6, log=True) == pytest.approx([0.5, 1, 2, 5])
    assert ticks(0.0734, 0.0807, log=True) == pytest.approx(
        [0.074, 0.076, 0.078, 0.08]
    )  # none is a 1, 2 or 5
    assert ticks(1, 1e9, log=True) == pytest.approx([10.0**e for e in range(10)])


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_there_are_always_a_few_ticks_within_the_range(low, span):
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 6
    assert all(low - span * 1e-6 <= value <= low + span * (1 + 1e-6) for value in found)


def test_a_scale_puts_the_ends_where_they_belong():
    place = scale(Axis("x"), [2, 4], 100, 300)
    assert (place(2), place(3), place(4)) == (100, 200, 300)
    place = scale(Axis("x", log=True), [1, 100], 0, 10)
    assert place(10) == pytest.approx(5)


def test_a_scale_widens_to_what_the_axis_asks_for_and_never_has_no_width():
    assert scale(Axis("x", low=0, high=1), [0.4, 1.5], 0, 30)(0.75) == 15
    assert scale(Axis("x"), [7], 0, 10)(7) == 5
    assert scale(Axis("x", log=True), [7], 0, 10)(7) == pytest.approx(5)


def test_epochs_are_whole():
    assert scale(Axis("epoch", whole=True), [1, 3], 0, 10).ticks() == [1, 2, 3]
    assert math.isclose(scale(Axis("x"), [1, 3], 0, 10).ticks()[1], 1.5)


def test_labels_of_a_short_axis_are_exact():
    """They were rounded to 97 %, 97 %, 97.1 %, 97.2 %, 97.2 %."""
    found = [SHARE.write(value) for value in scale(SHARE, [0.9700, 0.9720], 0, 10).ticks()]
    assert found == ["97 %", "97.05 %", "97.1 %", "97.15 %", "97.2 %"]
    time = Axis("time", milliseconds, log=True)
    found = [milliseconds(value) for value in scale(time, [1.56, 1.58], 0, 10).ticks()]
    assert found == ["1.56 ms", "1.565 ms", "1.57 ms", "1.575 ms", "1.58 ms"]
