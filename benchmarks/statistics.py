"""Percentiles and confidence intervals. Nothing is trimmed: a slow run is part of the result.

Runs that follow each other are not independent (clocks, caches, neighbours), so intervals come from
resampling whole rounds, a *cluster bootstrap* (Davison & Hinkley, Bootstrap Methods, 1997, section 3.8),
and the ratio of two models from resampling the rounds they share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
CONFIDENCE = 0.95
Z95 = 1.959964
"""The standard normal quantile of a two-sided 95 % interval."""

Rounds = Sequence[np.ndarray]
"""Samples of one model, an array a round."""
Interval = tuple[float, float]


def summary(samples: np.ndarray) -> dict[str, float]:
    """Mean, least, most and PERCENTILES of `samples` (linear interpolation between order statistics)."""
    found = {"mean": float(samples.mean()), "min": float(samples.min()), "max": float(samples.max())}
    values = np.percentile(samples, list(PERCENTILES.values()))
    return found | {name: float(value) for name, value in zip(PERCENTILES, values, strict=True)}


def statistic(samples: np.ndarray, name: str) -> float:
    """One figure of `samples`: `mean`, or a percentile such as `p99`."""
    return float(samples.mean() if name == "mean" else np.percentile(samples, PERCENTILES[name]))


def interval(rounds: Rounds, name: str = "p50", *, replicates: int = 1000, seed: int = 0) -> Interval:
    """95 % interval of the statistic `name` over all rounds' samples together."""
    random = np.random.default_rng(seed)
    return _percentile_interval([statistic(_resample(rounds, random), name) for _ in range(replicates)])


def ratio(top: Rounds, bottom: Rounds, name: str = "p50") -> float:
    """The statistic `name` of `top` ÷ that of `bottom`."""
    return statistic(np.concatenate(top), name) / statistic(np.concatenate(bottom), name)


def ratio_interval(
    top: Rounds,
    bottom: Rounds,
    name: str = "p50",
    *,
    paired: bool = True,
    replicates: int = 1000,
    seed: int = 0,
) -> Interval:
    """95 % interval of `ratio`.

    `paired`: round i of both was measured side by side, so both are resampled together and what slows a whole
    round cancels out. Otherwise (two runs, two days) each is resampled by itself.
    """
    random = np.random.default_rng(seed)
    ratios = []
    for _ in range(replicates):
        picked = random.integers(len(top), size=len(top))
        other = picked if paired else random.integers(len(bottom), size=len(bottom))
        ratios.append(ratio([top[i] for i in picked], [bottom[i] for i in other], name))
    return _percentile_interval(ratios)


def half_width(bounds: Interval, value: float) -> float:
    """Half the width of an interval relative to `value`: 0.02 is ±2 %."""
    return (bounds[1] - bounds[0]) / 2 / value


def proportion_interval(hits: int, total: int) -> Interval:
    """95 % interval of a proportion (Wilson, 1927): for an accuracy."""
    share, z2 = hits / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, centre - spread), min(1.0, centre + spread)


def paired_difference(baseline: np.ndarray, model: np.ndarray) -> tuple[float, Interval]:
    """Accuracy of `model` − that of `baseline` on the same images, with its 95 % interval.

    `baseline` and `model` are (N,) bool, right or wrong for each image. The interval is Agresti and Min's for
    matched pairs (Statistics in Medicine 24, 2005): half an image is added to each of the four outcomes,
    which keeps it honest where the two hardly differ.
    """
    total = len(baseline)
    gained, lost = int((model & ~baseline).sum()), int((baseline & ~model).sum())
    n, up, down = total + 2, gained + 0.5, lost + 0.5
    centre = (up - down) / n
    spread = Z95 * math.sqrt(up + down - (up - down) ** 2 / n) / n
    return (gained - lost) / total, (max(-1.0, centre - spread), min(1.0, centre + spread))


def _resample(rounds: Rounds, random: np.random.Generator) -> np.ndarray:
    return np.concatenate([rounds[i] for i in random.integers(len(rounds), size=len(rounds))])


def _percentile_interval(values: list[float]) -> Interval:
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
