from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.benchmarks import statistics


def test_percentiles_of_known_samples_keep_the_outlier():
    samples = np.array([*range(1, 100), 10_000.0])  # 1 … 99 and one run that took a hundred times as long
    found = statistics.summary(samples)
    assert found["p50"] == 50.5
    assert found["p90"] == pytest.approx(90.1)
    assert found["max"] == 10_000
    assert found["p99"] > 99
    assert found["p99.9"] > 9_000
    assert found["mean"] == pytest.approx((99 * 50 + 10_000) / 100)


def test_the_interval_of_constant_samples_is_a_point():
    rounds = [np.full(10, 3.0)] * 8
    assert statistics.interval(rounds) == (3.0, 3.0)


def test_the_interval_holds_the_true_median_about_as_often_as_it_says():
    """100 experiments of 12 rounds whose level wanders: a 95 % interval must cover well over 80 of them."""
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        rounds = [random.normal(10 + random.normal(0, 0.5), 1, 20) for _ in range(12)]
        low, high = statistics.interval(rounds, replicates=200, seed=seed)
        covered += low <= 10 <= high
    assert 80 < covered <= 100


def test_treating_the_rounds_as_one_would_be_too_sure():
    """The same samples with the rounds shuffled away give an interval that is much too narrow."""
    random = np.random.default_rng(1)
    rounds = [random.normal(level, 0.1, 50) for level in (9, 10, 11, 12) * 3]
    low, high = statistics.interval(rounds)
    alone = [np.array([value]) for value in np.concatenate(rounds)]
    naive_low, naive_high = statistics.interval(alone)
    assert high - low > naive_high - naive_low


def test_what_slows_a_whole_round_cancels_out_of_a_paired_ratio():
    drift = np.linspace(1, 2, 10)  # the machine gets twice as slow over the run
    slow, fast = [np.full(5, 6.0) * d for d in drift], [np.full(5, 2.0) * d for d in drift]
    low, high = statistics.ratio_interval(slow, fast)
    assert (low, high) == pytest.approx((3.0, 3.0))
    low, high = statistics.ratio_interval(slow, fast, paired=False)
    assert low < 2.8
    assert high > 3.2


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
