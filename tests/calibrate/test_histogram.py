from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slimdeploy.calibrate.histogram import BINS, Histogram, histogram, merge

values = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def slow(numbers: np.ndarray) -> tuple[dict[int, int], int]:
    """Counts by bin, one value after another, and the exponent of the bins' width."""
    largest = float(np.abs(numbers).max())
    exponent = -160
    while largest / 2.0**exponent >= BINS:
        exponent += 1
    counts: dict[int, int] = {}
    for number in numbers[numbers != 0].tolist():
        i = math.floor(abs(number) / 2.0**exponent)
        counts[i] = counts.get(i, 0) + 1
    return counts, exponent


def same(one: Histogram, other: Histogram) -> bool:
    rest = [(h.exponent, h.zeros, h.minimum, h.maximum) for h in (one, other)]
    return np.array_equal(one.counts, other.counts) and rest[0] == rest[1]


@given(values)
def test_counts_as_one_would_by_hand(numbers):
    found = histogram(numbers)
    counts, exponent = slow(numbers)
    assert {int(i): int(found.counts[i]) for i in np.flatnonzero(found.counts)} == counts
    assert found.exponent == exponent
    assert (found.minimum, found.maximum) == (numbers.min(), numbers.max())
    assert found.total == len(numbers)
    assert found.zeros == int((numbers == 0).sum())


@given(st.lists(values, min_size=2, max_size=4))
def test_merging_batches_is_counting_all_at_once(parts):
    merged = functools.reduce(merge, [histogram(part) for part in parts])
    assert same(merged, histogram(np.concatenate(parts)))
    assert same(merged, functools.reduce(merge, [histogram(part) for part in reversed(parts)]))


def test_known_numbers():
    found = histogram(np.float32([0, 0, 1, -1, 1.5, 2047]))
    assert (found.zeros, found.exponent, found.width) == (2, 0, 1.0)
    assert (found.counts[1], found.counts[2047], found.counts.sum()) == (3, 1, 4)
    assert found.largest == 2047


def test_longer_than_a_chunk():
    numbers = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    found = histogram(numbers)
    assert found.counts.sum() == np.count_nonzero(numbers)
    expected, _ = np.histogram(np.abs(numbers), BINS, (0, BINS * found.width))
    assert np.abs(found.counts - expected).max() <= 1  # numpy closes the last bin and rounds the edges


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        histogram(np.float32([1, bad, 2]))
