"""Learning rates, by numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.toolchain.training.schedules import SCHEDULES, lr_factor


def _factors(schedule: str, *, steps: int, epochs: int, step_epochs: int = 30) -> list[float]:
    return [
        lr_factor(schedule, i, steps_per_epoch=steps, epochs=epochs, step_epochs=step_epochs)
        for i in range(steps * epochs)
    ]


def test_one_cycle_rises_over_a_fifth_and_falls_to_nothing() -> None:
    # 9 steps are progress 0.1, 0.2, …, 0.9: half of the rise, the peak, then down by an eighth a step.
    expected = [0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert _factors("one-cycle", steps=3, epochs=3) == pytest.approx(expected)


def test_cosine() -> None:
    expected = [0.8535534, 0.5, 0.1464466]  # (1 + cos 45°)/2, (1 + cos 90°)/2, (1 + cos 135°)/2
    assert _factors("cosine", steps=1, epochs=3) == pytest.approx(expected)


def test_step_divides_by_ten() -> None:
    expected = [1.0] * 6 + [0.1] * 6 + [0.01] * 3
    assert _factors("step", steps=3, epochs=5, step_epochs=2) == pytest.approx(expected)


def test_constant() -> None:
    assert _factors("constant", steps=2, epochs=2) == [1.0] * 4


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_every_step_moves_something(schedule: str, steps: int, epochs: int, step_epochs: int) -> None:
    """No step of any schedule is wasted on a rate of zero, and none is above the peak."""
    factors = _factors(schedule, steps=steps, epochs=epochs, step_epochs=step_epochs)
    assert all(0 < factor <= 1 for factor in factors)
