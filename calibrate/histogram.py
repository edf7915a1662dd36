"""Histograms of activations, which are filled batch by batch and can be merged exactly.

The bins contain |x|; their width is a power of two. A histogram that meets larger values adds neighbouring
bins, so merging two histograms is exact. Exact zeros (half of the values after a ReLU) are counted
separately: every scheme represents them exactly, and they would dominate the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BINS = 2048
_SMALLEST_EXPONENT = -160
"""Exponent for a tensor of only zeros: below every float32."""
_CHUNK = 1 << 16
"""Values counted at a time: if they fit in the cache, counting is eight times as fast."""


@dataclass(frozen=True)
class Histogram:
    """Distribution of one tensor. Bin `i` counts the values with i ≤ |x| ÷ 2^exponent < i + 1,
    without zeros.
    """

    counts: np.ndarray
    """(BINS,) int64"""
    exponent: int
    zeros: int
    minimum: float
    maximum: float

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def largest(self) -> float:
        """The largest |x|, exactly."""
        return max(abs(self.minimum), abs(self.maximum))

    @property
    def total(self) -> int:
        """Number of counted values, zeros included."""
        return int(self.counts.sum()) + self.zeros


def histogram(values: np.ndarray) -> Histogram:
    """Histogram of float32 `values` of any shape, at least one. Raises ValueError for NaN or infinity."""
    minimum, maximum = float(values.min()), float(values.max())
    largest = max(abs(minimum), abs(maximum))
    if not math.isfinite(largest) or math.isnan(minimum):
        raise ValueError("NaN or infinity among the values")
    # frexp: largest < 2^e, so the largest value divided by 2^(e - 11) is below 2,048.
    exponent = math.frexp(largest)[1] - BINS.bit_length() + 1 if largest else _SMALLEST_EXPONENT
    exponent = max(exponent, _SMALLEST_EXPONENT)
    counts = np.zeros(BINS, np.int64)
    flat, factor = values.ravel(), math.ldexp(1.0, -exponent)  # multiplication by a power of two is exact
    for start in range(0, len(flat), _CHUNK):
        magnitudes = np.abs(flat[start : start + _CHUNK])
        if exponent > -127:
            magnitudes *= np.float32(factor)
        else:  # beyond float32
            magnitudes = magnitudes * np.float64(factor)
        counts += np.bincount(magnitudes.astype(np.int32), minlength=BINS)
    zeros = values.size - int(np.count_nonzero(values))
    counts[0] -= zeros
    return Histogram(counts, exponent, zeros, minimum, maximum)


def merge(one: Histogram, other: Histogram) -> Histogram:
    """The histogram of the values of both."""
    fine, coarse = sorted((one, other), key=lambda h: h.exponent)
    return Histogram(
        counts=coarse.counts + _coarser(fine.counts, coarse.exponent - fine.exponent),
        exponent=coarse.exponent,
        zeros=one.zeros + other.zeros,
        minimum=min(one.minimum, other.minimum),
        maximum=max(one.maximum, other.maximum),
    )


def _coarser(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The same counts in bins wider by 2^doublings."""
    if doublings >= BINS.bit_length():  # all in the first bin
        doublings = BINS.bit_length()
    summed = np.zeros_like(counts)
    np.add.at(summed, np.arange(BINS) >> doublings, counts)
    return summed
