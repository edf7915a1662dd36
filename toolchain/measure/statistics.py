"""Percentiles and confidence intervals. Nothing is trimmed: slow runs are part of the result.

A fresh process gets its own addresses, pages and core for its lifetime, so two processes of one file differ
by more than the variance of the runs within each. The unit of the intervals of times is therefore the launch
(one fresh process per model): Student's t over launches, of logarithms, because times differ by factors
(Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013). A bootstrap over so few units is
too narrow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
CONFIDENCE = 0.95
Z95 = 1.959964
"""The standard normal quantile of a two-sided 95 % interval."""

Launches = Sequence[Sequence[np.ndarray]]
"""Samples of one model in ms, by launch and by round."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """The mean of independent logarithms. `error` is its standard error, with `freedom` degrees of
    freedom.
    """

    mean: float
    error: float
    freedom: float

    def interval(self) -> Interval:
        """95 % interval of the exponential of the mean."""
        reach = student_t(self.freedom) * self.error
        return math.exp(self.mean - reach), math.exp(self.mean + reach)

    def half_width(self) -> float:
        """Half of the interval's width, relative to the value: 0.02 is ±2 %."""
        return half_width(self.interval(), math.exp(self.mean))


def summary(samples: np.ndarray) -> dict[str, float]:
    """Mean, minimum, maximum and PERCENTILES of `samples` (linear interpolation between order statistics)."""
    found = {"mean": float(samples.mean()), "min": float(samples.min()), "max": float(samples.max())}
    values = np.percentile(samples, list(PERCENTILES.values()))
    return found | {name: float(value) for name, value in zip(PERCENTILES, values, strict=True)}


def statistic(samples: np.ndarray, name: str) -> float:
    """One statistic of `samples`: `mean`, or a percentile such as `p99`."""
    return float(samples.mean() if name == "mean" else np.percentile(samples, PERCENTILES[name]))


def rounds(blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The blocks of a launch, joined in pairs."""
    return [np.concatenate(pair) for pair in zip(blocks[::2], blocks[1::2], strict=True)]


def levels(launches: Launches, name: str = "p50") -> np.ndarray:
    """(launches,) log of the statistic `name` in each launch.

    For the median it is the mean over the rounds: the rounds of two models were timed side by side, so that a
    disturbance of a round cancels in their difference. Tail percentiles need all runs of a launch together.
    """
    if name == "p50":
        return np.array([np.mean([math.log(np.median(round_)) for round_ in launch]) for launch in launches])
    return np.array([math.log(statistic(np.concatenate(launch), name)) for launch in launches])


def estimate(values: np.ndarray) -> Estimate:
    """The mean of at least two independent values."""
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values) - 1)


def ratio(top: Launches, bottom: Launches, name: str = "p50") -> Estimate:
    """Log of the statistic `name` of `top` ÷ that of `bottom`, paired by launch."""
    return estimate(levels(top, name) - levels(bottom, name))


def interval(launches: Launches, value: float, name: str = "p50") -> Interval:
    """95 % interval of the statistic `name`, whose value over all runs is `value`."""
    found = estimate(levels(launches, name))
    return Estimate(math.log(value), found.error, found.freedom).interval()


@functools.cache
def student_t(freedom: float) -> float:
    """The quantile of a two-sided 95 % interval: with t = √ν·tan θ the density becomes cos(θ)^(ν−1)."""
    theta = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(theta) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(np.interp(CONFIDENCE * below[-1], below, theta))


def half_width(bounds: Interval, value: float) -> float:
    """Half the width of an interval relative to `value`: 0.02 is ±2 %."""
    return (bounds[1] - bounds[0]) / 2 / value


def proportion_interval(hits: int, total: int) -> Interval:
    """95 % interval of a proportion such as accuracy (Wilson, 1927)."""
    share, z2 = hits / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, centre - spread), min(1.0, centre + spread)


def paired_difference(baseline: np.ndarray, model: np.ndarray) -> tuple[float, Interval]:
    """Accuracy of `model` − that of `baseline` on the same images, with its 95 % interval.

    `baseline` and `model` are (N,) bool: correct or not, for each image. The interval is Agresti and Min's
    for matched pairs (Statistics in Medicine 24, 2005): half an image is added to each of the four outcomes,
    which keeps the coverage if the two models hardly differ.
    """
    total = len(baseline)
    gained, lost = int((model & ~baseline).sum()), int((baseline & ~model).sum())
    n, up, down = total + 2, gained + 0.5, lost + 0.5
    centre = (up - down) / n
    spread = Z95 * math.sqrt(up + down - (up - down) ** 2 / n) / n
    return (gained - lost) / total, (max(-1.0, centre - spread), min(1.0, centre + spread))
