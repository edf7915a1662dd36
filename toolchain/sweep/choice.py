"""The Pareto front of the trials, and the choice by conditions."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError, nearest

Row = dict[str, Any]
"""A trial as in `sweep.json`."""

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
UNITS = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "accuracy": {"": 1.0, "%": 0.01},
    "speedup": {"": 1.0, "x": 1.0},
    "params": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "macs": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
}
"""Metric -> unit -> factor."""
_CONDITION = re.compile(r"([a-z]+)(?:@(\d+))?\s*(<=|>=|<|>)\s*([0-9.]+(?:e[-+]?\d+)?)\s*([a-zA-Z%]*)")


@dataclass(frozen=True)
class Condition:
    """`metric` (at `batch`, for latency and speed-up; None: the smallest) compared with `limit`."""

    text: str
    metric: str
    batch: int | None
    compare: str
    limit: float
    unit: str

    def met(self, row: Row) -> bool:
        return OPERATORS[self.compare](self.value(row), self.limit)

    def value(self, row: Row) -> float:
        if self.metric == "accuracy":
            return accuracy(row)
        if self.metric in ("params", "macs"):
            return row[self.metric]
        found = next(one for one in row["latency"] if self.batch in (None, one["batch"]))
        return found["p50_ms"] if self.metric == "latency" else found["speedup"]

    def write(self, row: Row) -> str:
        """The trial's value in the unit of the condition."""
        return f"{self.value(row) / UNITS[self.metric][self.unit]:.4g} {self.unit}".rstrip()

    def distance(self, row: Row) -> float:
        """Distance from the limit, relative to it; 0 if met."""
        return abs(self.value(row) - self.limit) / abs(self.limit or 1)


def parse_conditions(texts: Sequence[str], batches: Sequence[int]) -> list[Condition]:
    """Read conditions such as `latency<=0.8ms`, separated by commas. `batches` are the measured batch sizes.

    Raises SlimdeployError if one can't be parsed, or names another batch size.
    """
    found = [_parse(part.strip()) for text in texts for part in text.split(",")]
    for one in found:
        if one.batch is not None and one.batch not in batches:
            measured = ", ".join(map(str, batches))
            raise SlimdeployError(
                f"`conditions` {one.text!r}: the recipe measures batch {measured}, not {one.batch}"
            )
    return found


def _parse(text: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if not found:
        raise SlimdeployError(
            f"`conditions` {text!r}: write it as 'latency<=0.8ms', 'latency@64<=40ms' or 'accuracy>=90%'"
        )
    metric, batch, compare, number, unit = found.groups()
    if metric not in UNITS:
        raise SlimdeployError(
            f"`conditions` {text!r}: no metric {metric}; known: {', '.join(UNITS)}.{nearest(metric, UNITS)}"
        )
    if batch and metric not in ("latency", "speedup"):
        raise SlimdeployError(
            f"`conditions` {text!r}: {metric} does not depend on the batch size: remove @{batch}"
        )
    if unit not in UNITS[metric]:
        known = " or ".join(unit or "none" for unit in UNITS[metric])
        raise SlimdeployError(f"`conditions` {text!r}: the unit of {metric} is {known}")
    try:
        limit = round(float(number) * UNITS[metric][unit], 12)  # so that 95 % is exactly 0.95
    except ValueError:
        raise SlimdeployError(f"`conditions` {text!r}: {number} is not a number") from None
    if metric == "accuracy" and limit > 1:
        most = "100%" if unit else f"1: write {number}% for percent"
        raise SlimdeployError(f"`conditions` {text!r}: an accuracy is at most {most}")
    return Condition(text, metric, int(batch) if batch else None, compare, limit, unit)


def latency(row: Row) -> float:
    """Latency in ms at the smallest batch size, which the sweep minimises."""
    return row["latency"][0]["p50_ms"]


def accuracy(row: Row) -> float:
    """Accuracy on the held-out training images, which the sweep maximises. Test images are only for the
    report.
    """
    return row["accuracy"]["validation"]


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front: trials such that no other is at least as good in accuracy and latency, and better in
    one.

    Fastest first; of trials equal in both, the first.
    """
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (latency(row), -accuracy(row))):
        if not front or accuracy(row) > accuracy(front[-1]):
            front.append(row)
    return front


def pick(rows: Sequence[Row], conditions: Sequence[Condition]) -> Row | None:
    """The best trial that meets all conditions; None if none does.

    The most accurate one, then the fastest; with only an accuracy condition the fastest, then the most
    accurate.
    """
    fitting = [row for row in rows if all(condition.met(row) for condition in conditions)]
    if not fitting:
        return None
    if conditions and all(condition.metric == "accuracy" for condition in conditions):
        return min(fitting, key=lambda row: (latency(row), -accuracy(row)))
    return min(fitting, key=lambda row: (-accuracy(row), latency(row)))


def why_none(rows: Sequence[Row], conditions: Sequence[Condition]) -> str:
    """The condition that no trial meets, with the closest trial; or that no trial meets all of them."""
    for condition in conditions:
        if not any(condition.met(row) for row in rows):
            near = min(rows, key=condition.distance)
            return f"no trial has {condition.text}: the closest, {near['name']}, has {condition.write(near)}"
    return f"no trial has {' and '.join(condition.text for condition in conditions)} together"
