from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.toolchain.measure import statistics
from slimdeploy.toolchain.measure.subjects import Subject, compared
from slimdeploy.toolchain.measure.timing import Timing, widest
from slimdeploy.toolchain.measure.worker import HOST


def test_percentiles_of_known_samples_keep_the_outlier():
    samples = np.array([*range(1, 100), 10_000.0])  # 1 … 99 and one run that took a hundred times as long
    found = statistics.summary(samples)
    assert found["p50"] == 50.5
    assert found["p90"] == pytest.approx(90.1)
    assert found["max"] == 10_000
    assert found["p99"] > 99
    assert found["p99.9"] > 9_000
    assert found["mean"] == pytest.approx((99 * 50 + 10_000) / 100)


def launches_of(level: float, *, scatter: float, number: int, random: np.random.Generator):
    """Launches of 3 rounds; each launch has a level of its own."""
    return [
        [np.exp(random.normal(level + own, 0.02, 20)) for _ in range(3)]
        for own in random.normal(0, scatter, number)
    ]


def test_the_interval_of_constant_samples_is_a_point():
    assert statistics.interval([[np.full(10, 3.0)] * 2] * 4, 3.0) == pytest.approx((3, 3))


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (1000, 1.96234)]
)
def test_quantiles_of_student_t_are_those_of_the_tables(freedom, expected):
    assert statistics.student_t(freedom) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("number", [3, 5, 10])
def test_a_ratio_of_the_same_holds_1_as_often_as_it_says_however_few_launches(number):
    """400 experiments on two equal models whose processes scatter by 5 %: 1 is left out in about 5 %."""
    random = np.random.default_rng(number)
    missed = 0
    for _ in range(400):
        pair = [launches_of(0.0, scatter=0.05, number=number, random=random) for _ in range(2)]
        low, high = statistics.ratio(*pair).interval()
        missed += not low <= 1 <= high
    assert 0.02 * 400 < missed < 0.08 * 400


def test_runs_within_a_process_say_nothing_of_the_scatter_between_processes():
    """The same samples, as if every round had been a launch: too narrow by far."""
    random = np.random.default_rng(1)
    launches = launches_of(0.0, scatter=0.05, number=5, random=random)
    low, high = statistics.interval(launches, 1.0)
    naive_low, naive_high = statistics.interval([[round_] for launch in launches for round_ in launch], 1.0)
    assert high - low > 1.5 * (naive_high - naive_low)


def test_what_slows_a_whole_round_cancels_out_of_a_ratio():
    drift = np.linspace(1, 2, 10).reshape(5, 2)  # the machine gets twice as slow over 5 launches
    slow, fast = ([[np.full(5, ms * d) for d in own] for own in drift] for ms in (6.0, 2.0))
    assert statistics.ratio(slow, fast).interval() == pytest.approx((3, 3))
    low, high = statistics.interval(slow, 9.0)
    assert low < 8
    assert high > 10


def test_half_width_is_relative():
    assert statistics.half_width((9.8, 10.2), 10.0) == pytest.approx(0.02)


def test_wilson_interval_of_a_known_case():
    """81 of 263: 0.2553 to 0.3662 (Newcombe, Statistics in Medicine 17, 1998, table I)."""
    assert statistics.proportion_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(total=st.integers(1, 500), data=st.data())
def test_a_proportion_lies_in_its_interval(total, data):
    hits = data.draw(st.integers(0, total))
    low, high = statistics.proportion_interval(hits, total)
    assert 0 <= low <= hits / total + 1e-12
    assert hits / total - 1e-12 <= high <= 1


def test_paired_difference_counts_only_the_images_that_changed():
    baseline = np.array([True] * 90 + [False] * 10)
    model = baseline.copy()
    model[:6] = False  # 6 lost
    model[90:92] = True  # 2 gained
    value, (low, high) = statistics.paired_difference(baseline, model)
    assert value == pytest.approx(-0.04)
    # By hand: n = 102, gained 2.5, lost 6.5: -4/102 ± 1.96 · √(9 − 16/102) / 102
    assert (low, high) == pytest.approx((-0.09636, 0.01793), abs=1e-4)


def test_no_difference_at_all_still_has_an_interval():
    same = np.ones(100, dtype=bool)
    value, (low, high) = statistics.paired_difference(same, same)
    assert value == 0
    assert low < 0 < high


def test_measuring_goes_on_until_every_comparison_is_known():
    """Two models of a second backend that are slow in turn: only their own ratio shows it."""
    up, down = [1.0, 1.1, 1.0, 1.1], [1.1, 1.0, 1.1, 1.0]
    timings = [
        Timing(launches=[[{HOST: np.array([ms])}] * 2 for ms in levels])
        for levels in ([1.0, 1.0, 1.0, 1.0], up, down)
    ]
    subjects = [Subject(name, backend, Mock()) for name, backend in (("a", "x"), ("a", "y"), ("b", "y"))]
    assert compared(subjects) == [(0, 1), (1, 2)]
    launches = [timing.by_launch() for timing in timings]
    wanted = statistics.ratio(launches[1], launches[2]).half_width()
    assert widest(timings, compared(subjects)) == pytest.approx(wanted)
    assert wanted > 1.9 * widest(timings, [(0, 1), (0, 2)])
