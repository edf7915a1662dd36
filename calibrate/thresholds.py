"""The clipping threshold of a tensor: the |x| that the largest quantised value represents.

Each method is a pure function of a histogram and the number of steps between 0 and the threshold (127 for
signed INT8, 255 for unsigned). A new method is one more function under `@METHODS.register("name")`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from slimdeploy.calibrate.histogram import BINS, Histogram
from slimdeploy.toolchain.registry import Registry

Method = Callable[[Histogram, int], float]
METHODS: Registry[Method] = Registry("method", Callable)

PERCENTILE = 0.9999
"""99.9 % clips too much of a ResNet; 99.99 % doesn't reduce its accuracy."""
SMOOTHING = 1e-4
"""Count for a bin that contains only clipped values: with 0, a single outlier would make the divergence
infinite.
"""
STRIDE = 8
"""The search tries every eighth bin edge: a finer search doesn't change the accuracy."""


@METHODS.register("minmax")
def minmax(histogram: Histogram, steps: int) -> float:
    """The largest |x|: nothing is clipped."""
    return histogram.largest


@METHODS.register("percentile")
def percentile(histogram: Histogram, steps: int) -> float:
    """PERCENTILE of all |x| (upper edge of the bin)."""
    below = histogram.zeros + np.cumsum(histogram.counts)
    reached = int(np.searchsorted(below, PERCENTILE * histogram.total))
    return min((reached + 1) * histogram.width, histogram.largest)


@METHODS.register("mse")
def mse(histogram: Histogram, steps: int) -> float:
    """The threshold with the smallest squared error of rounding and clipping."""
    centres = np.arange(BINS) + 0.5  # in bin widths
    candidates = _candidates(histogram, steps)
    errors = [
        np.dot(histogram.counts, (centres - _rounded(centres, candidate / steps, steps)) ** 2)
        for candidate in candidates
    ]
    return _threshold(histogram, candidates, errors)


@METHODS.register("entropy")
def entropy(histogram: Histogram, steps: int) -> float:
    """The threshold with the smallest Kullback-Leibler divergence of the quantised distribution from the
    clipped one (Migacz, 8-bit Inference with TensorRT, GTC 2017).
    """
    candidates = _candidates(histogram, steps)
    divergences = [_divergence(histogram.counts, int(candidate), steps + 1) for candidate in candidates]
    return _threshold(histogram, candidates, divergences)


def _candidates(histogram: Histogram, steps: int) -> np.ndarray:
    """Candidate thresholds in bin widths: every STRIDE bins, from one bin per step to the last used bin."""
    used = np.flatnonzero(histogram.counts)
    last = int(used[-1]) + 1 if len(used) else 0
    return np.arange(last, max(0, min(steps, last - 1)), -STRIDE)[::-1]


def _threshold(histogram: Histogram, candidates: np.ndarray, losses: list[float]) -> float:
    """The candidate with the smallest loss, in the tensor's unit; of equal ones the largest, which clips
    least.
    """
    if not len(candidates):
        return histogram.largest
    best = len(losses) - 1 - int(np.argmin(losses[::-1]))
    return min(float(candidates[best]) * histogram.width, histogram.largest)


def _rounded(values: np.ndarray, step: float, steps: int) -> np.ndarray:
    return np.minimum(np.rint(values / step), steps) * step


def _divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """KL divergence in nats between the first `kept` bins (clipped values added to the last one) and the same
    counts spread evenly within `levels` groups of bins. Infinite if every value is clipped.
    """
    if not counts[:kept].any():
        return math.inf
    clipped = counts[:kept].astype(np.float64)
    clipped[-1] += counts[kept:].sum()
    filled = clipped > 0
    group = np.arange(kept) * levels // kept
    # The counts of a group, without clipped values, are distributed over its bins that aren't empty.
    sums = np.bincount(group, weights=counts[:kept], minlength=levels)
    shares = np.bincount(group, weights=filled, minlength=levels)
    spread = np.maximum((sums / np.maximum(shares, 1))[group][filled], SMOOTHING)
    p, q = clipped[filled] / clipped.sum(), spread / spread.sum()
    return float(np.sum(p * np.log(p / q)))
