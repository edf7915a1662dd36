"""The change of a metric from one measurement to another, with its 95 % interval.

Two models in one run are timed side by side. Two runs are not: the state of the machine (other programs,
clocks, temperature) differs between them, and a single run can't show that variance. It is measured if a side
has several runs, and assumed (BETWEEN_RUNS) if each side has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slimdeploy.toolchain.measure import statistics

Row = dict[str, Any]
BETWEEN_RUNS = 0.05
"""Assumed relative standard deviation of a median between runs on a quiet machine."""
ASSUMED_FREEDOM = 1000
"""Degrees of freedom of the assumed error."""
POINTS = ("memory_file", "memory_weights", "memory_peak", "memory_peak_above_idle", "params", "macs")
"""Metrics that are single numbers without an interval."""
TIMES = (*(f"latency_{name}" for name in ("mean", *statistics.PERCENTILES)), "images_per_second")
METRICS = (*TIMES, "accuracy", *POINTS)


@dataclass(frozen=True)
class Change:
    """`value` is new ÷ old, for accuracy new − old, with its 95 % interval."""

    model: str
    backend: str
    precision: str
    batch: int
    metric: str
    old: float
    new: float
    value: float
    ci95: statistics.Interval
    noisy: bool = False
    """Whether one of its rows missed the requested interval."""
    doubt: str = ""
    """Why this can't be judged, whatever the interval."""


def change(old: Row, new: Row, metric: str) -> Change | None:
    """The change of `metric` from one row to another of the same run; None if one doesn't have it."""
    return _change([old], [new], metric, _side_by_side)


def change_between_runs(old: Sequence[Row], new: Sequence[Row], metric: str) -> Change | None:
    """The change of `metric` from the runs `old` of a model to the runs `new`; None if one side doesn't have
    it.
    """
    return _change(old, new, metric, _between_runs)


def _change(
    old: Sequence[Row],
    new: Sequence[Row],
    metric: str,
    ratio: Callable[[Sequence[Row], Sequence[Row], str], statistics.Estimate],
) -> Change | None:
    before, after = _values(old, metric), _values(new, metric)
    if not before or not after:
        return None
    if metric == "accuracy":  # same images and weights: repetitions give the same value
        a, b = before[0], after[0]
        value, bounds = b - a, _difference_interval(old[0], new[0])
    elif min(*before, *after) <= 0:
        return None
    else:
        a, b = (math.exp(np.mean(np.log(side))) for side in (before, after))
        value, bounds = b / a, (b / a, b / a)
        if metric not in POINTS or len(before) + len(after) > 2:
            found = ratio(old, new, metric)
            value, bounds = math.exp(found.mean), found.interval()
    row, noisy = new[0], metric in TIMES and not all(one["interval_reached"] for one in (*old, *new))
    return Change(
        row["model"], row["backend"], row["precision"], row["batch"], metric, a, b, value, bounds, noisy
    )


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    """The value in every row; empty if one doesn't have it."""
    values = [_value(row, metric) for row in rows]
    return [] if None in values else [value for value in values if value is not None]


def _value(row: Row, metric: str) -> float | None:
    group, _, name = metric.partition("_")
    if group == "latency":
        return row["latency_ms"][name]
    if group == "memory":
        return row["memory_mb"][name]
    return row[metric]


def _launches(row: Row) -> statistics.Launches:
    """Samples by launch and round; a row without launches counts as one process."""
    blocks, counts = [np.array(block) for block in row["samples_ms"]], row.get("launches")
    ends = np.cumsum(counts or [len(blocks)])
    return [statistics.rounds(blocks[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _statistic(metric: str) -> tuple[str, int]:
    """The statistic that a metric is computed from, and whether it grows with it."""
    return ("mean", -1) if metric == "images_per_second" else (metric.removeprefix("latency_"), 1)


def _side_by_side(old: Sequence[Row], new: Sequence[Row], metric: str) -> statistics.Estimate:
    name, sign = _statistic(metric)
    found = statistics.ratio(_launches(new[0]), _launches(old[0]), name)
    return replace(found, mean=sign * found.mean)


def _between_runs(old: Sequence[Row], new: Sequence[Row], metric: str) -> statistics.Estimate:
    """Log of new ÷ old; its error includes the variance between runs."""
    before, after = (np.log(_values(rows, metric)) for rows in (old, new))
    mean, freedom = float(after.mean() - before.mean()), len(before) + len(after) - 2
    share = 1 / len(before) + 1 / len(after)
    if freedom:
        squares = sum(float(((side - side.mean()) ** 2).sum()) for side in (before, after))
        return statistics.Estimate(mean, math.sqrt(squares / freedom * share), freedom)
    within = [_error(row, metric) for row in (old[0], new[0])]
    return statistics.Estimate(mean, math.hypot(*within, BETWEEN_RUNS * math.sqrt(share)), ASSUMED_FREEDOM)


def _error(row: Row, metric: str) -> float:
    """Standard error of the metric's log within a run; 0 for a run of one process."""
    launches = _launches(row)
    if len(launches) < 2:
        return 0.0
    return statistics.estimate(statistics.levels(launches, _statistic(metric)[0])).error


def _difference_interval(old: Row, new: Row) -> statistics.Interval:
    """Newcombe's interval of the difference of two proportions, from Wilson's intervals (method 10, 1998).

    It assumes independent images, so it is usually wider than a paired interval.
    """
    a, b = old["accuracy"], new["accuracy"]
    (a_low, a_high), (b_low, b_high) = old["accuracy_ci95"], new["accuracy_ci95"]
    down = ((b - b_low) ** 2 + (a_high - a) ** 2) ** 0.5
    up = ((b_high - b) ** 2 + (a - a_low) ** 2) ** 0.5
    return b - a - down, b - a + up
